package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

func (p *program) dev() *cobra.Command {
	var listen, data string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run an etcd for trying things out",
		Long: `Dev runs an etcd of one member in this process, for trying things out on one machine: without
authentication, without TLS, without other members. It prints the line that makes locker and
etcdctl use it, and runs until it is interrupted. Unless --data names a directory, its data is
in a temporary one, which is removed at the end.`,
		Example: `  locker dev
  locker dev --listen 127.0.0.1:23790 --data ./etcd`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, port, err := net.SplitHostPort(listen)
			if err != nil || net.ParseIP(host) == nil {
				return usageError("--listen %q is not an IP address and a port, as 127.0.0.1:2379 is", listen)
			}
			if port == "0" {
				if listen, err = freePort(host); err != nil {
					return err
				}
			}
			return p.serveEtcd(cmd.Context(), listen, data)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:2379", "IP `address` and port for clients; with port 0 a free one")
	cmd.Flags().StringVar(&data, "data", "", "`directory` of the data, which is kept (default a temporary one)")
	return cmd
}

// freePort returns an address whose port is free.
func freePort(host string) (string, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// serveEtcd runs an etcd until ctx ends.
func (p *program) serveEtcd(ctx context.Context, listen, data string) (err error) {
	directory, release, err := dataDirectory(data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	var servers []*grpc.Server
	logged := zap.NewAtomicLevelAt(zap.ErrorLevel)
	config := p.etcdConfig(listen, directory, data == "", logged)
	config.ServiceRegister = func(server *grpc.Server) { servers = append(servers, server) }
	etcd, err := embed.StartEtcd(config)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("the address %s is in use; choose another with --listen", listen)
	}
	if err != nil {
		return fmt.Errorf("etcd does not start: %w", err)
	}
	defer func() {
		logged.SetLevel(zap.FatalLevel)  // that it no longer listens is no error now
		for _, server := range servers { // Close alone waits for open watches
			server.Stop()
		}
		etcd.Close()
	}()
	return p.untilEnded(ctx, etcd, listen, directory)
}

// untilEnded says that etcd is ready, and returns when it has ended, or ctx ends.
func (p *program) untilEnded(ctx context.Context, etcd *embed.Etcd, listen, directory string) error {
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		return fmt.Errorf("etcd does not start: %w", err)
	case <-ctx.Done():
		return nil
	}
	p.note("etcd is ready on %s, with its data in %s; interrupt it to end it", listen, directory)
	if err := output(p.stdout, []byte("export ETCDCTL_ENDPOINTS="+listen+"\n")); err != nil {
		return err
	}
	select {
	case err := <-etcd.Err():
		return fmt.Errorf("etcd has ended: %w", err)
	case <-etcd.Server.StopNotify():
		return errors.New("etcd has ended by itself")
	case <-ctx.Done():
		return nil
	}
}

// etcdConfig returns the configuration of an etcd without peers.
func (p *program) etcdConfig(listen, directory string, temporary bool, logged zapcore.LevelEnabler) *embed.Config {
	c := embed.NewConfig()
	c.Name = "locker-dev"
	c.Dir = filepath.Join(directory, "etcd")
	c.ListenClientUrls = []url.URL{{Scheme: "http", Host: listen}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"} // nobody connects to it
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.EnableGRPCGateway = false
	c.UnsafeNoFsync = temporary
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, time.Hour.String()
	encoder := zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
	log := zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(p.stderr)), logged))
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return c
}

// dataDirectory returns the directory to use, and what is to be done at the end: the
// temporary one is removed. Two processes cannot use one directory: etcd would wait.
func dataDirectory(data string) (directory string, release func() error, err error) {
	if data == "" {
		if directory, err = os.MkdirTemp("", "locker-dev-"); err != nil {
			return "", nil, fmt.Errorf("there is no temporary directory: %w", err)
		}
		return directory, func() error { return os.RemoveAll(directory) }, nil
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return "", nil, usageError("--data cannot be used: %v", err)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(data, "lock"), os.O_CREATE|os.O_WRONLY, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		return "", nil, fmt.Errorf("another process uses the directory %s; choose another with --data", printable(data))
	}
	if err != nil {
		return "", nil, usageError("--data cannot be used: %v", err)
	}
	return data, lock.Close, nil
}
