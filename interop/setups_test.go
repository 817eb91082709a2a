package interop

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// setup is one way to run etcd.
type setup struct {
	name     string
	members  int
	tls      bool          // clients have certificates too
	validity time.Duration // of the members' certificates
	auth     bool
	jwt      bool // tokens expire after 2 s, even when used
	flags    []string
	on       func(release) bool // nil for all releases
}

var (
	oneMember      = setup{name: "one member", members: 1}
	threeMembers   = setup{name: "three members", members: 3}
	withTLS        = setup{name: "TLS", members: 1, tls: true, validity: time.Hour}
	authentication = setup{name: "authentication", members: 1, auth: true, flags: []string{"--bcrypt-cost=4"}}

	setups = []setup{oneMember, threeMembers, withTLS, authentication}
)

// A current etcd client cannot replace its token on etcd 3.4: the server rejects the
// request for a new token because it carries the old one. So with authentication, holds
// survive the expiry of a token, or a restart that forgets all tokens, only from 3.5 on.
func is34(r release) bool   { return strings.HasPrefix(r.version, oldestVersion) }
func from35(r release) bool { return !is34(r) }

// The users with authentication; the password of each is its name. The role of service is
// that of SECURITY.md, with data/ added for what the tests commit.
const (
	root    = "root"
	service = "service"
)

// cluster is a running etcd of one release in one setup.
type cluster struct {
	release
	setup
	*etcdproc.Cluster
	dir   string
	files *etcdproc.TLS // for clients; nil without TLS
	tls   *tls.Config
}

func start(ctx context.Context, r release, s setup) (_ *cluster, err error) {
	c := &cluster{release: r, setup: s}
	if c.dir, err = os.MkdirTemp("", "locker-interop-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
			err = fmt.Errorf("%s, %s: %w", r.version, s.name, err)
		}
	}()
	o := etcdproc.Options{Program: r.etcd, Members: s.members, Dir: c.dir, Flags: slices.Clone(s.flags)}
	authority, err := etcdproc.NewAuthority(c.dir)
	if err != nil {
		return nil, err
	}
	if s.tls {
		if o.TLS, err = c.issue(authority); err != nil {
			return nil, err
		}
	}
	if s.jwt {
		signing, err := authority.Issue("tokens", time.Now().Add(time.Hour))
		if err != nil {
			return nil, err
		}
		o.Flags = append(o.Flags, "--auth-token=jwt,sign-method=ES256,ttl=2s,pub-key="+signing.Cert+",priv-key="+signing.Key)
	}
	if c.Cluster, err = etcdproc.Start(ctx, o); err != nil {
		return nil, err
	}
	if s.auth {
		return c, c.enableAuth(ctx)
	}
	return c, nil
}

// issue creates certificates for clients and for the members, and returns the files of
// the latter.
func (c *cluster) issue(authority *etcdproc.Authority) (*etcdproc.TLS, error) {
	members, err := authority.Issue("member", time.Now().Add(c.validity))
	if err != nil {
		return nil, err
	}
	if c.files, err = authority.Issue("client", time.Now().Add(time.Hour)); err != nil {
		return nil, err
	}
	c.tls, err = c.files.Config()
	return members, err
}

func (c *cluster) enableAuth(ctx context.Context) error {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer etcd.Close()
	if err := addUser(ctx, etcd, root); err != nil {
		return err
	}
	if err := addUser(ctx, etcd, service, readWrite("locker/"), readWrite("data/")); err != nil {
		return err
	}
	if _, err := etcd.AuthEnable(ctx); err != nil {
		return fmt.Errorf("enable authentication: %w", err)
	}
	return nil
}

// permission is for all keys that begin with prefix.
type permission struct {
	prefix string
	kind   clientv3.PermissionType
}

func readWrite(prefix string) permission {
	return permission{prefix, clientv3.PermissionType(clientv3.PermReadWrite)}
}

func readOnly(prefix string) permission {
	return permission{prefix, clientv3.PermissionType(clientv3.PermRead)}
}

// addUser adds a user and a role of the same name with the permissions.
func addUser(ctx context.Context, etcd *clientv3.Client, name string, permissions ...permission) error {
	if _, err := etcd.RoleAdd(ctx, name); err != nil {
		return fmt.Errorf("add role %s: %w", name, err)
	}
	for _, p := range permissions {
		if _, err := etcd.RoleGrantPermission(ctx, name, p.prefix, clientv3.GetPrefixRangeEnd(p.prefix), p.kind); err != nil {
			return fmt.Errorf("grant permission to %s: %w", name, err)
		}
	}
	if _, err := etcd.UserAdd(ctx, name, name); err != nil {
		return fmt.Errorf("add user %s: %w", name, err)
	}
	if _, err := etcd.UserGrantRole(ctx, name, name); err != nil {
		return fmt.Errorf("grant role to %s: %w", name, err)
	}
	return nil
}

func (c *cluster) close() {
	if c.Cluster != nil {
		c.Cluster.Close()
	}
	_ = os.RemoveAll(c.dir)
}

// config returns the configuration of a client for a user.
func (c *cluster) config(user string) clientv3.Config {
	config := clientv3.Config{Endpoints: c.Endpoints(), TLS: c.tls, Logger: zap.NewNop()}
	if c.auth {
		config.Username, config.Password = user, user
	}
	return config
}

// ctlFlags returns the flags with which etcdctl connects.
func (c *cluster) ctlFlags() []string {
	flags := []string{"--endpoints=" + c.Endpoints()[0]}
	if c.tls != nil {
		flags = append(flags, "--cacert="+c.files.CA, "--cert="+c.files.Cert, "--key="+c.files.Key)
	}
	if c.auth {
		flags = append(flags, "--user="+service+":"+service)
	}
	return flags
}
