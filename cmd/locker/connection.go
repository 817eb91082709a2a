package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// connection is how the program reaches etcd: the flags that etcdctl has, with the same
// names, and what they do not set from the environment.
type connection struct {
	endpoints          []string
	cacert, cert, key  string
	insecureSkipVerify bool
	user, password     string
	dialTimeout        time.Duration
	prefix             string
	ttl                time.Duration
}

// flags defines the flags.
func (c *connection) flags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&c.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "addresses of etcd, separated by commas")
	flags.StringVar(&c.cacert, "cacert", "", "`file` with the certificates that those of etcd are checked with")
	flags.StringVar(&c.cert, "cert", "", "`file` with the certificate of this client")
	flags.StringVar(&c.key, "key", "", "`file` with the key of this client")
	flags.BoolVar(&c.insecureSkipVerify, "insecure-skip-tls-verify", false, "accept any certificate of etcd")
	flags.StringVar(&c.user, "user", "", "`name[:password]` of the user in etcd")
	flags.StringVar(&c.password, "password", "", "password of the user, if --user has none")
	flags.DurationVar(&c.dialTimeout, "dial-timeout", 5*time.Second, "how long to wait for a connection")
	flags.StringVar(&c.prefix, "prefix", locker.DefaultPrefix, "prefix of the keys in etcd")
	flags.DurationVar(&c.ttl, "ttl", locker.DefaultTTL, "time to live of leases")
}

// complete takes what the flags do not set from the environment: from LOCKER_ENDPOINTS, or
// else from ETCDCTL_ENDPOINTS, and so on.
func (c *connection) complete(flags *pflag.FlagSet) error {
	var failed error
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed || failed != nil {
			return
		}
		name := strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		for _, variable := range []string{"LOCKER_" + name, "ETCDCTL_" + name} {
			value := os.Getenv(variable)
			if value == "" || !environment[flag.Name] || isOfRun(variable) {
				continue
			}
			if err := flags.Set(flag.Name, value); err != nil {
				failed = usageError("the environment variable %s is not valid: %v", variable, err)
			}
			return
		}
	})
	return failed
}

// isOfRun reports whether a variable is one that "locker run" sets for its command: there,
// LOCKER_KEY is the key of the lock.
func isOfRun(variable string) bool {
	return variable == "LOCKER_KEY" && os.Getenv("LOCKER_TOKEN") != ""
}

// environment has the flags that the environment may set.
var environment = map[string]bool{
	"endpoints": true, "cacert": true, "cert": true, "key": true, "insecure-skip-tls-verify": true,
	"user": true, "password": true, "dial-timeout": true, "prefix": true, "ttl": true,
}

// dial connects to etcd, and logs in if there is a user. It returns why there is no
// connection, within the dial timeout. The connection outlives ctx.
func (c *connection) dial(ctx context.Context) (*clientv3.Client, error) {
	config := locker.ClientConfig(c.endpoints...)
	var err error
	if config.TLS, err = c.tls(); err != nil {
		return nil, err
	}
	if c.user != "" {
		name, password, given := strings.Cut(c.user, ":")
		if !given {
			password = c.password
		}
		config.Username, config.Password = name, password
	}
	attempt, cancel := context.WithTimeout(ctx, c.dialTimeout*9/10) // and the rest to find out why
	defer cancel()
	// What etcd's client is given ends its requests forever, so that has to follow the attempt
	// only until it has succeeded: locks are released after ctx has ended.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	config.Context = life
	detach := context.AfterFunc(attempt, end)
	etcd, err := clientv3.New(config)
	if !detach() && err == nil {
		_ = etcd.Close()
		err = attempt.Err()
	}
	if err != nil {
		end()
		if attempt.Err() != nil {
			err = cmp.Or(ctx.Err(), c.unreachable(ctx), attempt.Err())
		}
		return nil, fmt.Errorf("no connection to etcd at %s: %w", strings.Join(c.endpoints, ", "), err)
	}
	return etcd, nil
}

// unreachable returns why there is no connection to one of the endpoints, nil if there is one
// to each. It takes a tenth of the dial timeout at most.
func (c *connection) unreachable(ctx context.Context) error {
	reasons := make([]error, len(c.endpoints))
	var asking sync.WaitGroup
	for i, endpoint := range c.endpoints {
		asking.Go(func() { reasons[i] = unreachable(ctx, endpoint, c.dialTimeout/10) })
	}
	asking.Wait()
	return cmp.Or(reasons...)
}

// tls returns the settings of TLS, nil if it is not used.
func (c *connection) tls() (*tls.Config, error) {
	secure := false
	for _, endpoint := range c.endpoints {
		secure = secure || strings.HasPrefix(endpoint, "https://")
	}
	if c.cacert == "" && c.cert == "" && c.key == "" && !c.insecureSkipVerify && !secure {
		return nil, nil
	}
	if (c.cert == "") != (c.key == "") {
		return nil, usageError("--cert and --key belong together")
	}
	info := transport.TLSInfo{TrustedCAFile: c.cacert, CertFile: c.cert, KeyFile: c.key, InsecureSkipVerify: c.insecureSkipVerify}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, usageError("the certificates cannot be used: %v", err)
	}
	return config, nil
}

// open connects to etcd and returns a client. It makes a request, so that it can say within
// the dial timeout why there is no answer.
func (c *connection) open(ctx context.Context, opts ...locker.Option) (client *locker.Client, etcd *clientv3.Client, stop func(), err error) {
	attempt, cancel := context.WithTimeout(ctx, c.dialTimeout)
	defer cancel()
	etcd, err = c.dial(attempt)
	if err != nil {
		return nil, nil, nil, err
	}
	client, err = locker.New(etcd, append([]locker.Option{locker.WithPrefix(c.prefix), locker.WithTTL(c.ttl)}, opts...)...)
	if err != nil {
		_ = etcd.Close()
		return nil, nil, nil, asUsage(err)
	}
	stop = func() { _ = client.Close(); _ = etcd.Close() }
	if _, err := client.Holders(attempt, "locker"); err != nil && !errors.Is(err, locker.ErrNotFound) && attempt.Err() != nil {
		stop()
		if reason := c.unreachable(ctx); reason != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w; check --endpoints, or start an etcd with \"locker dev\"", reason)
		}
		return nil, nil, nil, fmt.Errorf("no answer from etcd at %s: %w", strings.Join(c.endpoints, ", "), err)
	}
	return client, etcd, stop, nil
}

// asUsage makes the error of an argument that cannot be used one of the command line.
func asUsage(err error) error {
	var invalid *locker.InvalidError
	if errors.As(err, &invalid) {
		return &exitError{exitUsage, invalid}
	}
	return err
}
