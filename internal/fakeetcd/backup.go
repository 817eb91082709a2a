package fakeetcd

import (
	"maps"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Backup is what a cluster had at one time. A test may change what it says of the cluster
// before it is restored: etcd's tools can give a new ID, and raise the revision.
type Backup struct {
	Cluster  uint64
	Revision int64

	keys   map[string]*mvccpb.KeyValue
	leases map[int64]int64 // their TTL, in seconds
}

// Backup returns what there is.
func (s *Server) Backup() Backup {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Backup{Cluster: s.cluster, Revision: s.revision, keys: maps.Clone(s.keys), leases: make(map[int64]int64)}
	for id, l := range s.leases {
		b.leases[id] = l.ttl
	}
	return b
}

// Restore has the Server go on from a backup, as a cluster does that was stopped, restored
// and started again: connections break, and leases live for their TTL from now on.
func (s *Server) Restore(b Backup) {
	s.mu.Lock()
	for id, l := range s.leases {
		l.expiry.Stop()
		delete(s.leases, id)
	}
	s.cluster, s.revision, s.keys = b.Cluster, b.Revision, maps.Clone(b.keys)
	for id, ttl := range b.leases {
		s.renew(s.lease(id), ttl)
	}
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close() // it may have been before
	}
}
