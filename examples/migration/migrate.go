package main

import (
	"context"
	"database/sql"
	"embed"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/jagregory/locker/v2"
)

//go:embed migrations/*.sql
var files embed.FS

// newProvider returns goose's provider of the migrations in fsys for the database db. It does not
// connect.
func newProvider(db *sql.DB, fsys fs.FS) (*goose.Provider, error) {
	// This lock belongs to the connection that migrates. It is there for a COMMIT that was under
	// way when the hold ended: the next holder looks which migrations are missing only after it.
	session, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 600)) // seconds between attempts, attempts
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectPostgres, db, fsys, goose.WithSessionLocker(session))
}

// migrate applies the migrations that are missing, while host holds the name "migrations", and
// returns which they were. It blocks until it is host's turn and all are applied, or ctx ends.
//
// Errors: those of Do, ErrLost among them; and those of goose. Every migration is then applied
// completely or not at all, and another call continues.
func migrate(ctx context.Context, client *locker.Client, host string, provider *goose.Provider) (applied []*goose.MigrationResult, err error) {
	err = client.Do(ctx, "migrations", host, func(ctx context.Context, _ *locker.Lock) (err error) {
		applied, err = provider.Up(ctx) // ctx ends with the hold, and the transaction with ctx
		return err
	})
	return applied, err
}
