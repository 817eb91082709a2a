package fakeetcd

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type lease struct {
	ttl    int64 // seconds
	until  time.Time
	expiry *time.Timer
}

// SetClock has the leases granted or renewed from now on live for the factor times their
// TTL: a clock of etcd beside which that of the clients is slow (less than 1) or fast.
func (s *Server) SetClock(factor float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = factor
}

// OnExpiry has f called at the moment at which a lease expires, just before its keys
// are deleted.
func (s *Server) OnExpiry(f func(clientv3.LeaseID)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expired = f
}

// Leases returns the leases that are there, in their order.
func (s *Server) Leases() []clientv3.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []clientv3.LeaseID
	for id := range s.leases {
		ids = append(ids, clientv3.LeaseID(id))
	}
	slices.Sort(ids)
	return ids
}

// Until returns when a lease expires, unless it is renewed; zero if it is not there.
func (s *Server) Until(id clientv3.LeaseID) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.leases[int64(id)]; l != nil {
		return l.until
	}
	return time.Time{}
}

// Expire ends a lease now.
func (s *Server) Expire(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(int64(id))
}

// LeaseGrant implements pb.LeaseServer.
func (s *Server) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return serve(ctx, s, Grant, r, func(f Fate) (*pb.LeaseGrantResponse, error) {
		id := r.ID
		if id == 0 {
			id = rand.Int64N(1<<63-1) + 1
		}
		if s.leases[id] != nil {
			return nil, rpctypes.ErrGRPCLeaseExist
		}
		l := s.lease(id)
		l.ttl = r.TTL
		s.renew(l, f.TTL)
		return &pb.LeaseGrantResponse{Header: s.header(), ID: id, TTL: l.ttl}, nil
	})
}

// lease makes a lease, which is yet to be renewed. The caller has the mutex.
func (s *Server) lease(id int64) *lease {
	l := new(lease)
	l.expiry = time.AfterFunc(time.Duration(1<<62), func() { s.expire(id) })
	s.leases[id] = l
	return l
}

// renew has a lease live for its TTL from now on, which changes if ttl is not 0.
func (s *Server) renew(l *lease, ttl int64) {
	if ttl != 0 {
		l.ttl = ttl
	}
	life := time.Duration(float64(l.ttl) * s.clock * float64(time.Second))
	l.until = time.Now().Add(life)
	l.expiry.Reset(life)
}

// expire ends a lease, unless it has been renewed in the last moment.
func (s *Server) expire(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.leases[id]; l != nil && !time.Now().Before(l.until) {
		s.expired(clientv3.LeaseID(id))
		s.drop(id)
	}
}

// drop ends a lease and deletes its keys, at one revision.
func (s *Server) drop(id int64) bool {
	l := s.leases[id]
	if l == nil {
		return false
	}
	l.expiry.Stop()
	delete(s.leases, id)
	w := s.begin()
	w.remove(s.attached(id))
	w.end()
	return true
}

// attached returns the keys of a lease, in their order.
func (s *Server) attached(id int64) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.keys)), func(key string) bool { return s.keys[key].Lease != id })
}

// LeaseRevoke implements pb.LeaseServer.
func (s *Server) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return serve(ctx, s, Revoke, r, func(Fate) (*pb.LeaseRevokeResponse, error) {
		if !s.drop(r.ID) {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
		return &pb.LeaseRevokeResponse{Header: s.header()}, nil
	})
}

// LeaseKeepAlive implements pb.LeaseServer. A lease that is not there has a TTL of 0.
func (s *Server) LeaseKeepAlive(renewals pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := renewals.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, err := serve(renewals.Context(), s, KeepAlive, r, func(f Fate) (*pb.LeaseKeepAliveResponse, error) {
			resp := &pb.LeaseKeepAliveResponse{Header: s.behind(f), ID: r.ID}
			if l := s.leases[r.ID]; l != nil {
				s.renew(l, f.TTL)
				resp.TTL = l.ttl
			}
			return resp, nil
		})
		if err != nil {
			return err
		}
		if err := renewals.Send(resp); err != nil {
			return err
		}
	}
}

// behind is the header of a member that may lag. The caller has the mutex.
func (s *Server) behind(f Fate) *pb.ResponseHeader {
	header := s.header()
	header.Revision = max(1, header.Revision-f.Behind)
	return header
}

// LeaseTimeToLive implements pb.LeaseServer. A lease that is not there is no error.
func (s *Server) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	return serve(ctx, s, TimeToLive, r, func(f Fate) (*pb.LeaseTimeToLiveResponse, error) {
		resp := &pb.LeaseTimeToLiveResponse{Header: s.behind(f), ID: r.ID, TTL: -1}
		l := s.leases[r.ID]
		if l == nil {
			return resp, nil
		}
		resp.GrantedTTL, resp.TTL = l.ttl, int64(time.Until(l.until)/time.Second)
		if r.Keys {
			for _, key := range s.attached(r.ID) {
				resp.Keys = append(resp.Keys, []byte(key))
			}
		}
		return resp, nil
	})
}
