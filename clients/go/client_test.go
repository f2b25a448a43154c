package nspool_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/golang/protobuf/proto"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"

	nspool "nspool.dev/clients/go"
)

func TestALeaseHasWhatAContainerCreateNeeds(t *testing.T) {
	client, pool, _ := start(t)
	lease := allocate(t, client, nspool.Request{Tenant: "acme", Labels: map[string]string{"k": "v"}, Wait: time.Second / 2})
	if !lease.Leased || lease.NetworkMode != "container:"+lease.NamespaceID {
		t.Errorf("leased %v, mode %q, namespace %q", lease.Leased, lease.NetworkMode, lease.NamespaceID)
	}
	if lease.Owner != "agent" || lease.Tenant != "acme" || lease.Labels["k"] != "v" {
		t.Errorf("owner %q, tenant %q, labels %v", lease.Owner, lease.Tenant, lease.Labels)
	}
	if wait := pool.requests[0].Wait; wait.GetNanos() != 500_000_000 {
		t.Errorf("wait %v", wait)
	}
	for _, text := range []string{fmt.Sprintf("%v", lease), fmt.Sprintf("%+v", lease), fmt.Sprintf("%#v", lease)} {
		if strings.Contains(text, lease.Token) {
			t.Errorf("%q shows the token", text)
		}
	}
}

// A grpc server in Go accepts any authority, so this one reads the headers itself.
func TestTheAuthorityIsOneThatH2Accepts(t *testing.T) {
	endpoint := endpointIn(t)
	listener, err := net.Listen("unix", strings.TrimPrefix(endpoint, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go newClient(t, endpoint, "").AllocateOrFallback(context.Background(), "bridge", nspool.Request{Timeout: 10 * time.Second})
	connection, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := connection.Read(make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(connection, connection)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if headers, ok := frame.(*http2.MetaHeadersFrame); ok {
			if authority := headers.PseudoValue("authority"); authority != "localhost" {
				t.Errorf(":authority is %q", authority)
			}
			return
		}
	}
}

func TestMergeKeepsWhatTheCreateBodyHad(t *testing.T) {
	client, _, _ := start(t)
	lease := allocate(t, client, nspool.Request{})
	body := `{"Image":"i","Labels":{"a":"b"},"HostConfig":{"Memory":1,"CapDrop":["SYS_TIME"],"NetworkMode":"x"}}`
	merged, err := lease.MergeInto([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]interface{}{
		"Image":  "i",
		"Labels": map[string]interface{}{"a": "b", "nspool.namespace_id": lease.NamespaceID},
		"HostConfig": map[string]interface{}{
			"Memory": 1.0, "CapDrop": []interface{}{"SYS_TIME", "NET_RAW"}, "NetworkMode": lease.NetworkMode,
		},
	}
	var got map[string]interface{}
	if err := json.Unmarshal(merged, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v\nwant %v", err, got, want)
	}
}

func TestALostAnswerIsAskedForAgainWithTheSameRequest(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.Unknown, codes.Internal} {
		client, pool, _ := start(t)
		pool.will("Allocate", broken(code), broken(code))
		allocate(t, client, nspool.Request{Wait: time.Second / 10})
		if len(pool.requests) != 3 || len(pool.leases) != 1 || pool.requests[0].RequestId == "" {
			t.Errorf("%v: %d requests, %d leases", code, len(pool.requests), len(pool.leases))
		}
		for _, request := range pool.requests {
			if !proto.Equal(request, pool.requests[0]) {
				t.Errorf("%v: %v is not %v", code, request, pool.requests[0])
			}
		}
	}
}

func TestTwoAllocationsAreTwoRequests(t *testing.T) {
	client, _, _ := start(t)
	if allocate(t, client, nspool.Request{}).Token == allocate(t, client, nspool.Request{}).Token {
		t.Error("two calls gave one lease")
	}
	mine := nspool.Request{RequestID: "mine"}
	if allocate(t, client, mine).Token != allocate(t, client, mine).Token {
		t.Error("one request id gave two leases")
	}
}

func TestAllocateWaitsForADaemonThatRestarts(t *testing.T) {
	endpoint := endpointIn(t)
	client := newClient(t, endpoint, "")
	go func() {
		time.Sleep(400 * time.Millisecond)
		server, err := newFakePool().serve(endpoint)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(server.Stop)
	}()
	allocate(t, client, nspool.Request{Timeout: 20 * time.Second})
}

func TestARefusalLeadsToThePlainNetworkAtOnce(t *testing.T) {
	for _, refusal := range []struct {
		code   codes.Code
		reason string
	}{
		{codes.ResourceExhausted, "POOL_EMPTY"}, {codes.Unavailable, "STARTING"}, {codes.Unavailable, "ENGINE_AWAY"},
		{codes.FailedPrecondition, "CORDONED"}, {codes.Internal, "SOMETHING_NEW"}, {codes.Unimplemented, ""},
	} {
		client, pool, _ := start(t)
		pool.will("Allocate", refusing(refusal.code, refusal.reason, 1500*time.Millisecond))
		plain, err := client.AllocateOrFallback(context.Background(), "slow0", patient)
		if err != nil || plain.Leased || plain.NetworkMode != "slow0" {
			t.Fatalf("%v: %v, %v", refusal, plain, err)
		}
		var cause *nspool.Error
		if !errors.As(plain.FallbackCause, &cause) || cause.Code != refusal.code || cause.Reason != refusal.reason ||
			cause.RetryAfter != 1500*time.Millisecond {
			t.Errorf("%v: cause %#v", refusal, cause)
		}
		if len(pool.requests) != 1 {
			t.Errorf("%v: %d requests; what the daemon answered stands", refusal, len(pool.requests))
		}
		if released := plain.Release(context.Background()); released.Outcome != nspool.NotLeased {
			t.Errorf("release of the plain network: %v", released)
		}
	}
}

func TestAMistakeOfTheCallerIsReturned(t *testing.T) {
	for _, code := range []codes.Code{codes.InvalidArgument, codes.PermissionDenied} {
		client, pool, _ := start(t)
		pool.will("Allocate", refusing(code, "BAD_FIELD", 0))
		_, err := client.AllocateOrFallback(context.Background(), "bridge", patient)
		var failure *nspool.Error
		if !errors.As(err, &failure) || !failure.Mistake() || !strings.Contains(err.Error(), "BAD_FIELD") {
			t.Errorf("%v: %v", code, err)
		}
	}
}

func TestNoDaemonCostsAStartNextToNothing(t *testing.T) {
	endpoint := endpointIn(t)
	client := newClient(t, endpoint, "")
	begin := time.Now()
	plain, err := client.AllocateOrFallback(context.Background(), "bridge", nspool.Request{})
	if err != nil || plain.Leased || time.Since(begin) > 2*time.Second {
		t.Errorf("%v, %v after %v", plain, err, time.Since(begin))
	}
	if !strings.Contains(plain.FallbackCause.Error(), endpoint) {
		t.Errorf("%v does not say where", plain.FallbackCause)
	}
	if _, err := client.Allocate(context.Background(), nspool.Request{Timeout: 300 * time.Millisecond}); err == nil {
		t.Error("a lease from nowhere")
	}
}

func TestADaemonThatHangsIsGivenUpInTime(t *testing.T) {
	client, pool, _ := start(t)
	release := make(chan struct{})
	defer close(release)
	pool.will("Allocate", func(healthy func() error) error { <-release; return healthy() })
	begin := time.Now()
	plain, err := client.AllocateOrFallback(context.Background(), "bridge", nspool.Request{})
	if err != nil || plain.Leased || time.Since(begin) > 3*time.Second {
		t.Errorf("%v, %v after %v", plain, err, time.Since(begin))
	}
}

func TestARepeatedRequestWhoseLeaseWasLostGivesNoLease(t *testing.T) {
	client, pool, _ := start(t)
	request := nspool.Request{RequestID: "r"}
	pool.lose(allocate(t, client, request).Token, "")
	_, err := client.Allocate(context.Background(), request)
	if err == nil || !strings.Contains(err.Error(), "LEASE_LOST") {
		t.Errorf("%v", err)
	}
	if doubts := pool.doubts(); !reflect.DeepEqual(doubts, []bool{true}) {
		t.Errorf("released %v", doubts)
	}
}

func TestAClosedClientGivesThePlainNetwork(t *testing.T) {
	client, _, _ := start(t)
	lease := allocate(t, client, nspool.Request{})
	if err := client.OnLost(func(nspool.LostLease) {}); err != nil {
		t.Fatal(err)
	}
	if err := client.KeepAlive(0); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	plain, err := client.AllocateOrFallback(context.Background(), "bridge", nspool.Request{})
	if err != nil || plain.Leased {
		t.Errorf("%v, %v", plain, err)
	}
	if released := lease.Release(context.Background()); released.Outcome != nspool.NotDelivered || released.Err == nil {
		t.Errorf("%v", released)
	}
	if client.OnLost(func(nspool.LostLease) {}) == nil || client.KeepAlive(0) == nil {
		t.Error("a closed client begins something")
	}
}

func TestReleaseIsDoubtfulWhenTheCallerCannotKnow(t *testing.T) {
	client, pool, _ := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	clean, marked, cancelled, known := allocate(t, client, nspool.Request{}), allocate(t, client, nspool.Request{}),
		allocate(t, client, nspool.Request{}), allocate(t, client, nspool.Request{})
	clean.Release(ctx)
	marked.MarkDoubtful()
	marked.Release(ctx)
	cancel()
	if released := cancelled.Release(ctx); released.Outcome != nspool.Returned {
		t.Errorf("a release by a cancelled caller: %v", released)
	}
	known.ReleaseAs(false)
	if doubts := pool.doubts(); !reflect.DeepEqual(doubts, []bool{false, true, true, false}) {
		t.Errorf("doubtful: %v", doubts)
	}
	if released := clean.Release(ctx); released.Outcome != nspool.AlreadyReleased || len(pool.doubts()) != 4 {
		t.Errorf("again: %v", released)
	}
	if client.Held() != 0 {
		t.Errorf("%d leases still held", client.Held())
	}
}

func TestAReleaseIsRepeatedWhenItsAnswerIsLost(t *testing.T) {
	client, pool, _ := start(t)
	pool.will("Release", broken(codes.Unavailable))
	released := allocate(t, client, nspool.Request{}).ReleaseAs(true)
	if released.Outcome != nspool.AlreadyReleased || !reflect.DeepEqual(pool.doubts(), []bool{true, true}) {
		t.Errorf("%v, %v", released, pool.doubts())
	}
}

func TestAReleaseThatNobodyHears(t *testing.T) {
	client, pool, server := start(t)
	forgotten, other := allocate(t, client, nspool.Request{}), allocate(t, client, nspool.Request{})
	pool.mu.Lock()
	delete(pool.leases, forgotten.Token)
	pool.mu.Unlock()
	if released := forgotten.ReleaseAs(false); released.Outcome != nspool.UnknownLease {
		t.Errorf("%v", released)
	}
	server.Stop()
	if released := other.ReleaseAs(false); released.Outcome != nspool.NotDelivered || released.Err == nil {
		t.Errorf("%v", released)
	}
}

func TestResumeGivesAllLeasesOfTheOwner(t *testing.T) {
	endpoint := endpointIn(t)
	pool := newFakePool()
	server, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	before, other := newClient(t, endpoint, "agent"), newClient(t, endpoint, "other")
	mine := map[string]bool{}
	for i := 0; i < 2; i++ {
		mine[allocate(t, before, nspool.Request{}).Token] = true
	}
	allocate(t, other, nspool.Request{})
	pool.will("Resume", broken(codes.Unavailable))
	leases, err := newClient(t, endpoint, "agent").Resume(context.Background())
	if err != nil || len(leases) != 2 || !mine[leases[0].Token] || !mine[leases[1].Token] {
		t.Fatalf("%v, %v; want %v", leases, err, mine)
	}
	if released := leases[0].Release(context.Background()); released.Outcome != nspool.Returned {
		t.Errorf("%v", released)
	}
	if _, err := newClient(t, endpoint, "").Resume(context.Background()); err == nil {
		t.Error("a client without an owner resumes")
	}
}

func TestRenewAndKeepAlive(t *testing.T) {
	client, pool, _ := start(t)
	lost := make(chan nspool.LostLease, 10)
	if err := client.OnLost(func(l nspool.LostLease) { lost <- l }); err != nil {
		t.Fatal(err)
	}
	lease := allocate(t, client, nspool.Request{Lifetime: nspool.TTL, TTL: 30 * time.Second})
	if !proto.Equal(pool.requests[0].Ttl, seconds(30)) {
		t.Errorf("ttl %v", pool.requests[0].Ttl)
	}
	if remaining, err := lease.Renew(context.Background(), 45*time.Second); err != nil || remaining != 45*time.Second {
		t.Errorf("%v, %v", remaining, err)
	}
	joiners := allocate(t, client, nspool.Request{})
	if err := client.KeepAlive(20 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "three renewals", func() bool { return pool.renewed3(lease.Token) })
	if pool.mu.Lock(); pool.renewals[joiners.Token] != 0 {
		t.Error("a lease without a ttl was renewed")
	}
	pool.mu.Unlock()
	pool.loseQuietly(lease.Token)
	if told := <-lost; told.Lease != lease {
		t.Errorf("told %v", told)
	}
}

func TestKeepAliveSeesAShortTTLThatComesLater(t *testing.T) {
	client, pool, _ := start(t)
	if err := client.KeepAlive(0); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	lease := allocate(t, client, nspool.Request{Lifetime: nspool.TTL, TTL: 300 * time.Millisecond})
	waitFor(t, "three renewals", func() bool { return pool.renewed3(lease.Token) })
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("three renewals of a ttl of 300 ms took %v", took)
	}
}
