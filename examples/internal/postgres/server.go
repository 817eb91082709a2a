package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// superuser is the user of the database.
const superuser = "postgres"

// stopTimeout is how long Postgres may take to end by itself.
const stopTimeout = 10 * time.Second

// server is a Postgres process. Only who can enter its directory can connect.
type server struct {
	dir   string // has the data, the socket and the log
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended
}

// startServer blocks until Postgres accepts connections, or ctx ends.
func startServer(ctx context.Context) (_ *server, err error) {
	programs, err := find()
	if err != nil {
		return nil, err
	}
	s := &server{ended: make(chan struct{})}
	if s.dir, err = os.MkdirTemp("", "postgres-"); err != nil { // short, as the path of a socket has to be
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	attributes, err := attributes(s.dir)
	if err != nil {
		return nil, err
	}
	initdb := exec.CommandContext(ctx, filepath.Join(programs, "initdb"), "--pgdata", s.data(),
		"--username", superuser, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = s.dir, attributes
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", errors.Join(err, context.Cause(ctx)), out)
	}
	if err := s.start(filepath.Join(programs, "postgres"), attributes); err != nil {
		return nil, err
	}
	return s, s.awaitReady(ctx)
}

// find returns the directory of the programs of the newest Postgres. Debian has them outside of
// the path.
func find() (dir string, err error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	newest := 0
	paths, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // fails only if the pattern is bad
	for _, path := range paths {
		programs := filepath.Dir(path)
		version, err := strconv.Atoi(filepath.Base(filepath.Dir(programs)))
		if err == nil && version > newest {
			newest, dir = version, programs
		}
	}
	if newest == 0 {
		return "", ErrNotInstalled
	}
	return dir, nil
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) url() string {
	settings := url.Values{"host": {s.dir}, "user": {superuser}}
	return "postgres:///postgres?" + settings.Encode()
}

// start starts the process, and the goroutine that waits for its end, which stop joins.
func (s *server) start(program string, attributes *syscall.SysProcAttr) error {
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close() // the process has it, too
	s.cmd = exec.Command(program, "-D", s.data(), "-c", "unix_socket_directories="+s.dir, "-c", "listen_addresses=",
		"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off") // its data does not outlive it
	s.cmd.Dir, s.cmd.SysProcAttr, s.cmd.Stdout, s.cmd.Stderr = s.dir, attributes, log, log
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // how it ended is in its log
	}()
	return nil
}

func (s *server) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.url())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-tick.C:
		case <-s.ended:
			log, err := os.ReadFile(filepath.Join(s.dir, "log"))
			return errors.Join(fmt.Errorf("the Postgres process has ended: %v\n%s", s.cmd.ProcessState, log), err)
		case <-ctx.Done():
			return fmt.Errorf("cannot connect to the Postgres that was started: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

// stop ends the process, whoever is connected to it, and removes its data.
func (s *server) stop() error {
	var err error
	if s.cmd != nil {
		timer := time.NewTimer(stopTimeout)
		defer timer.Stop()
		err = ignoreEnded(s.cmd.Process.Signal(syscall.SIGQUIT)) // Postgres calls that an immediate shutdown
		select {
		case <-s.ended:
		case <-timer.C:
			err = errors.Join(err, errors.New("the Postgres process did not end by itself"), ignoreEnded(s.cmd.Process.Kill()))
			<-s.ended
		}
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

func ignoreEnded(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
