package nspool_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/protobuf/proto"
	"github.com/golang/protobuf/ptypes/duration"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nspool "nspool.dev/clients/go"
	"nspool.dev/clients/go/nspoolv1"
)

// behaviour is what a call does in place of what a healthy daemon would, which it may call.
type behaviour func(healthy func() error) error

func refusing(code codes.Code, reason string, retryAfter time.Duration) behaviour {
	return func(func() error) error {
		st, err := status.New(code, "told to say "+reason).WithDetails(nspool.RefusalDetails(reason, retryAfter)...)
		if err != nil {
			return err
		}
		return st.Err()
	}
}

// broken does the work, and loses the answer.
func broken(code codes.Code) behaviour {
	return func(healthy func() error) error {
		if err := healthy(); err != nil {
			return err
		}
		return status.Error(code, "transport is closing")
	}
}

// fakePool is a daemon without namespaces and engine, that grants leases and misbehaves as told. It forgets them when it
// ends.
type fakePool struct {
	nspoolv1.UnimplementedNamespacePoolServer
	nspoolv1.UnimplementedImageCacheServer

	mu        sync.Mutex
	leases    map[string]*nspoolv1.Lease
	byRequest map[string]string
	requests  []*nspoolv1.AllocateRequest
	releases  []*nspoolv1.ReleaseRequest
	renewals  map[string]int
	images    []*nspoolv1.EnsureImageRequest
	// What the next calls of a method do, in order; then they are healthy again.
	script          map[string][]behaviour
	events          []*nspoolv1.WatchResponse
	forgottenBefore uint64
	watchRequests   []*nspoolv1.WatchRequest
	// Closed and replaced at each event, and when the streams are to end.
	changed chan struct{}
	hangUps int
}

func newFakePool() *fakePool {
	return &fakePool{
		leases: map[string]*nspoolv1.Lease{}, byRequest: map[string]string{}, renewals: map[string]int{},
		script: map[string][]behaviour{}, changed: make(chan struct{}),
	}
}

func (p *fakePool) serve(endpoint string) (*grpc.Server, error) {
	path := strings.TrimPrefix(endpoint, "unix:")
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	nspoolv1.RegisterNamespacePoolServer(server, p)
	nspoolv1.RegisterImageCacheServer(server, p)
	go server.Serve(listener)
	return server, nil
}

func (p *fakePool) scripted(method string, healthy func() error) error {
	p.mu.Lock()
	var behave behaviour
	if script := p.script[method]; len(script) > 0 {
		behave, p.script[method] = script[0], script[1:]
	}
	p.mu.Unlock()
	if behave == nil {
		return healthy()
	}
	return behave(healthy)
}

func (p *fakePool) will(method string, behaviours ...behaviour) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script[method] = append(p.script[method], behaviours...)
}

func (p *fakePool) Allocate(_ context.Context, request *nspoolv1.AllocateRequest) (answer *nspoolv1.AllocateResponse, err error) {
	p.mu.Lock()
	p.requests = append(p.requests, request)
	p.mu.Unlock()
	err = p.scripted("Allocate", func() error {
		answer = p.grant(request)
		return nil
	})
	return answer, err
}

func (p *fakePool) grant(request *nspoolv1.AllocateRequest) *nspoolv1.AllocateResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	if token, ok := p.byRequest[request.RequestId]; ok {
		return &nspoolv1.AllocateResponse{Lease: p.copy(token), RepeatedRequest: true}
	}
	number := len(p.leases) + 1
	name := fmt.Sprintf("nspool-fake-%d-%d-1", number, number)
	hostConfig, _ := json.Marshal(map[string]interface{}{
		"HostConfig": map[string]interface{}{"NetworkMode": "container:" + name, "CapDrop": []string{"NET_RAW"}},
		"Labels":     map[string]string{"nspool.namespace_id": name},
	})
	lease := &nspoolv1.Lease{
		Token: fmt.Sprintf("token-%d", number), LeaseId: fmt.Sprintf("lease-%d", number), State: nspool.Active,
		Slot: uint32(number), Generation: uint64(number), Use: 1, NamespaceId: name, NetworkMode: "container:" + name,
		HostConfig: string(hostConfig), Network: "bridge", Lifetime: request.Lifetime, Remaining: request.Ttl,
		Owner: request.Owner, Tenant: request.Tenant, Labels: request.Labels, IpAddresses: []string{"172.17.0.5/16"},
	}
	p.leases[lease.Token] = lease
	p.byRequest[request.RequestId] = lease.Token
	return &nspoolv1.AllocateResponse{Lease: p.copy(lease.Token)}
}

// copy is what may leave the lock.
func (p *fakePool) copy(token string) *nspoolv1.Lease {
	return proto.Clone(p.leases[token]).(*nspoolv1.Lease)
}

func (p *fakePool) Release(_ context.Context, request *nspoolv1.ReleaseRequest) (answer *nspoolv1.ReleaseResponse, err error) {
	err = p.scripted("Release", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.releases = append(p.releases, request)
		lease := p.leases[request.Token]
		if lease == nil {
			return refusing(codes.NotFound, "UNKNOWN_TOKEN", 0)(nil)
		}
		answer = &nspoolv1.ReleaseResponse{Outcome: nspoolv1.ReleaseOutcome_RELEASE_OUTCOME_RETURNED}
		if lease.State == nspool.Ended {
			answer.Outcome = nspoolv1.ReleaseOutcome_RELEASE_OUTCOME_ALREADY_RELEASED
		}
		lease.State = nspool.Ended
		return nil
	})
	return answer, err
}

func (p *fakePool) GetLease(_ context.Context, request *nspoolv1.GetLeaseRequest) (answer *nspoolv1.GetLeaseResponse, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leases[request.Token] == nil {
		return nil, refusing(codes.NotFound, "UNKNOWN_TOKEN", 0)(nil)
	}
	return &nspoolv1.GetLeaseResponse{Lease: p.copy(request.Token)}, nil
}

func (p *fakePool) Renew(_ context.Context, request *nspoolv1.RenewRequest) (*nspoolv1.RenewResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewals[request.Token]++
	return &nspoolv1.RenewResponse{Remaining: request.Ttl}, nil
}

func (p *fakePool) EnsureImage(request *nspoolv1.EnsureImageRequest, stream nspoolv1.ImageCache_EnsureImageServer) error {
	p.mu.Lock()
	p.images = append(p.images, request)
	p.mu.Unlock()
	progress := &nspoolv1.FetchProgress{Attempt: 1, Layers: 2, LayersDone: 1}
	told := &nspoolv1.EnsureImageResponse{Event: &nspoolv1.EnsureImageResponse_Progress{Progress: progress}}
	if err := stream.Send(told); err != nil {
		return err
	}
	return p.scripted("EnsureImage", func() error {
		image := &nspoolv1.EnsuredImage{Id: "sha256:1", Reference: request.Reference, Fetched: true}
		return stream.Send(&nspoolv1.EnsureImageResponse{Event: &nspoolv1.EnsureImageResponse_Image{Image: image}})
	})
}

func (p *fakePool) KeepAlive(stream nspoolv1.NamespacePool_KeepAliveServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, token := range request.Tokens {
			if err := stream.Send(p.renewed(token)); err != nil {
				return err
			}
		}
	}
}

func (p *fakePool) renewed(token string) *nspoolv1.KeepAliveResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewals[token]++
	lease := p.leases[token]
	switch {
	case lease == nil:
		return &nspoolv1.KeepAliveResponse{Token: token, Reason: "UNKNOWN_TOKEN"}
	case lease.State == nspool.Lost:
		return &nspoolv1.KeepAliveResponse{Token: token, Reason: "LEASE_LOST"}
	}
	return &nspoolv1.KeepAliveResponse{Token: token, Remaining: lease.Remaining}
}

func (p *fakePool) Resume(request *nspoolv1.ResumeRequest, stream nspoolv1.NamespacePool_ResumeServer) error {
	return p.scripted("Resume", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for token, lease := range p.leases {
			if lease.Owner != request.Owner || lease.State == nspool.Ended {
				continue
			}
			if err := stream.Send(&nspoolv1.ResumeResponse{Lease: p.copy(token)}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *fakePool) Watch(request *nspoolv1.WatchRequest, stream nspoolv1.NamespacePool_WatchServer) error {
	p.mu.Lock()
	p.watchRequests = append(p.watchRequests, request)
	messages := p.firstMessages(request)
	next, hangUps := len(p.events), p.hangUps
	p.mu.Unlock()
	for {
		for _, message := range messages {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		p.mu.Lock()
		messages = append([]*nspoolv1.WatchResponse{}, p.events[next:]...)
		next = len(p.events)
		changed, over := p.changed, p.hangUps != hangUps
		p.mu.Unlock()
		if over {
			return nil
		}
		if len(messages) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (p *fakePool) firstMessages(request *nspoolv1.WatchRequest) []*nspoolv1.WatchResponse {
	last := uint64(len(p.events))
	asked := request.GetMaybePosition() != nil
	if position := request.GetPosition(); asked && p.forgottenBefore <= position && position <= last {
		return p.events[position:]
	}
	snapshot := &nspoolv1.Snapshot{}
	for _, lease := range p.leases {
		if lease.State != nspool.Ended {
			snapshot.Leases = append(snapshot.Leases, eventOf(lease))
		}
	}
	var messages []*nspoolv1.WatchResponse
	if asked {
		reset := &nspoolv1.WatchResponse_Reset_{Reset_: &nspoolv1.Reset{}}
		messages = append(messages, &nspoolv1.WatchResponse{Position: last, Event: reset})
	}
	return append(messages, &nspoolv1.WatchResponse{
		Position: last, Event: &nspoolv1.WatchResponse_Snapshot{Snapshot: snapshot},
	})
}

func eventOf(lease *nspoolv1.Lease) *nspoolv1.LeaseEvent {
	return &nspoolv1.LeaseEvent{
		LeaseId: lease.LeaseId, NamespaceId: lease.NamespaceId, Owner: lease.Owner, State: lease.State, Cause: lease.Cause,
	}
}

// lose makes the buddy of this lease die.
func (p *fakePool) lose(token, cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases[token].State, p.leases[token].Cause = nspool.Lost, cause
	p.events = append(p.events, &nspoolv1.WatchResponse{
		Position: uint64(len(p.events) + 1), Event: &nspoolv1.WatchResponse_Lost{Lost: eventOf(p.leases[token])},
	})
	p.wakeWatchers()
}

// loseQuietly is lose without an event.
func (p *fakePool) loseQuietly(token string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases[token].State = nspool.Lost
}

// hangUp ends all watch streams, after `with` was done to the pool.
func (p *fakePool) hangUp(with func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	with()
	p.hangUps++
	p.wakeWatchers()
}

func (p *fakePool) wakeWatchers() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *fakePool) doubts() []bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	doubts := []bool{}
	for _, release := range p.releases {
		doubts = append(doubts, release.Doubtful)
	}
	return doubts
}

func (p *fakePool) renewed3(token string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.renewals[token] >= 3
}

func seconds(n int64) *duration.Duration { return &duration.Duration{Seconds: n} }

// endpointIn is not in t.TempDir: with the name of a test in it the path can be too long for a socket (107 bytes).
func endpointIn(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "nspool")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return "unix:" + filepath.Join(folder, "n.sock")
}

// start gives a fake pool, its server, and a client of it with the owner "agent".
func start(t *testing.T) (*nspool.Client, *fakePool, *grpc.Server) {
	t.Helper()
	endpoint := endpointIn(t)
	pool := newFakePool()
	server, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return newClient(t, endpoint, "agent"), pool, server
}

// patient is for calls of a daemon that is there, however busy the machine is: without a time of its own a call with a way out has half a second.
var patient = nspool.Request{Timeout: 10 * time.Second}

func newClient(t *testing.T, endpoint, owner string) *nspool.Client {
	t.Helper()
	client, err := nspool.New(nspool.Config{Endpoint: endpoint, Owner: owner, Logf: func(string, ...interface{}) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func allocate(t *testing.T, client *nspool.Client, request nspool.Request) *nspool.Lease {
	t.Helper()
	lease, err := client.Allocate(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// waitFor waits until condition holds, and fails, naming what, when it does not in time.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
