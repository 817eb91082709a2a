package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errStale reports that a write was refused, because a later holder of the lock has written.
var errStale = errors.New("refused by Postgres: a later holder has written")

// The name is that of the lock; the token is that of the latest hold which has written. Rows must
// not be deleted, because that forgets the token. Set the value to NULL instead.
const table = `CREATE TABLE records (name text PRIMARY KEY, value text, token bigint NOT NULL)`

// Both compare the token and keep it in one statement. While another transaction is writing the
// row, Postgres waits until that has ended, and compares with what it has left.
const (
	writeRecord = `
		INSERT INTO records (name, token, value) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET token = excluded.token, value = excluded.value
		WHERE records.token <= excluded.token`
	raiseToken = `
		INSERT INTO records (name, token) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET token = excluded.token
		WHERE records.token <= excluded.token`
)

// write sets the value of name, unless a later holder of the lock name has written. Token is that
// of the hold. It blocks until Postgres has answered, or ctx ends.
//
// Errors: errStale if nothing was written; and those of pgx, after which it may have been.
func write(ctx context.Context, conn *pgx.Conn, name string, token int64, value string) error {
	tag, err := conn.Exec(ctx, writeRecord, name, token, value)
	return accepted(tag, err)
}

// transact calls fn in a transaction, unless a later holder of the lock name has written. What fn
// writes may be in any tables. It blocks until the transaction has ended, or ctx ends.
//
// The transaction begins with the row of the lock, which stays locked until it ends: a later holder
// waits there, and writes after it. A SELECT would leave a gap between the check and the COMMIT, in
// which a later holder could come and go. (SELECT ... FOR UPDATE has no gap, but leaves no token.)
//
// Errors: errStale, in which case fn was not called; that of fn, after which nothing was written;
// and those of pgx, after which it may have been.
func transact(ctx context.Context, conn *pgx.Conn, name string, token int64, fn func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, raiseToken, name, token)
		if err := accepted(tag, err); err != nil {
			return err
		}
		return fn(tx)
	})
}

func accepted(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() == 0 {
		return errStale
	}
	return err
}
