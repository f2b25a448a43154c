package nspool_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/grpc/codes"

	nspool "nspool.dev/clients/go"
)

// As Docker's client has it: a marker method.
type notFound struct{ error }

func (notFound) NotFound() {}

// As others have it: the HTTP status.
type coded struct{ status int }

func (c coded) Error() string   { return fmt.Sprint("status ", c.status) }
func (c coded) StatusCode() int { return c.status }

func TestRunWithRunsInALease(t *testing.T) {
	client, pool, _ := start(t)
	lease, err := client.RunWith(context.Background(), "bridge", patient, func(context.Context, *nspool.Lease) error {
		return nil
	})
	if err != nil || !lease.Leased || len(pool.doubts()) != 0 {
		t.Fatalf("%v, %v, releases %v: the lease lasts as long as the function", lease, err, pool.doubts())
	}
}

func TestRunWithoutALease(t *testing.T) {
	client, pool, _ := start(t)
	pool.will("Allocate", refusing(codes.ResourceExhausted, "POOL_EMPTY", 0))
	lease, err := client.RunWith(context.Background(), "slow0", patient, func(_ context.Context, l *nspool.Lease) error {
		if l.NetworkMode != "slow0" {
			return errors.New(l.NetworkMode)
		}
		return nil
	})
	if err != nil || lease.FallbackCause == nil {
		t.Fatalf("%v, %v", lease, err)
	}
}

// A start that fails because of the lease is made once more on the plain network; one that fails by itself fails.
func TestASecondTryIfTheLeaseExplainsTheFailure(t *testing.T) {
	for name, test := range map[string]struct {
		fail      func(pool *fakePool, stop func(), lease *nspool.Lease) error
		explained bool
	}{
		"docker's not found": {func(*fakePool, func(), *nspool.Lease) error {
			return fmt.Errorf("start: %w", notFound{errors.New("no such container")})
		}, true},
		"conflict": {func(*fakePool, func(), *nspool.Lease) error { return coded{409} }, true},
		"it names the namespace": {func(_ *fakePool, _ func(), l *nspool.Lease) error {
			return fmt.Errorf("cannot join %s", l.NamespaceID)
		}, true},
		"lost in between": {func(p *fakePool, _ func(), l *nspool.Lease) error {
			p.lose(l.Token, "")
			return errors.New("boom")
		}, true},
		"forgotten": {func(p *fakePool, _ func(), l *nspool.Lease) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.leases, l.Token)
			return errors.New("boom")
		}, true},
		"daemon gone": {func(_ *fakePool, stop func(), _ *nspool.Lease) error {
			stop()
			return errors.New("boom")
		}, true},
		"the function's own": {func(*fakePool, func(), *nspool.Lease) error { return coded{500} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			client, pool, server := start(t)
			var modes []string
			var first error
			lease, err := client.RunWith(context.Background(), "bridge", patient,
				func(_ context.Context, l *nspool.Lease) error {
					modes = append(modes, l.NetworkMode)
					if !l.Leased {
						return nil
					}
					first = test.fail(pool, server.Stop, l)
					return first
				})
			if test.explained && (err != nil || lease.Leased || lease.FallbackCause != first || len(modes) != 2) {
				t.Errorf("%v, %v, tried %v", lease, err, modes)
			}
			if !test.explained && (err != first || len(modes) != 1) {
				t.Errorf("%v, %v, tried %v", lease, err, modes)
			}
			if doubts := pool.doubts(); name != "daemon gone" && !reflect.DeepEqual(doubts, []bool{true}) {
				t.Errorf("released %v", doubts)
			}
		})
	}
}

func TestAnErrorThatTheCallerExplains(t *testing.T) {
	_, pool, _ := start(t)
	endpoint := endpointIn(t)
	server, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	strange := errors.New("EJOIN")
	client, err := nspool.New(nspool.Config{
		Endpoint: endpoint,
		Explains: func(err error, _ *nspool.Lease) bool { return errors.Is(err, strange) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	lease, err := client.RunWith(context.Background(), "bridge", patient, func(_ context.Context, l *nspool.Lease) error {
		if l.Leased {
			return strange
		}
		return nil
	})
	if err != nil || lease.Leased {
		t.Errorf("%v, %v", lease, err)
	}
}

func TestACancelledStartIsNotTriedAgain(t *testing.T) {
	client, pool, _ := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	tries := 0
	_, err := client.RunWith(ctx, "bridge", patient, func(context.Context, *nspool.Lease) error {
		tries++
		cancel()
		return coded{404}
	})
	if err == nil || tries != 1 || !reflect.DeepEqual(pool.doubts(), []bool{true}) {
		t.Errorf("%v, %d tries, released %v", err, tries, pool.doubts())
	}
}

func TestAPanicMakesTheReleaseDoubtful(t *testing.T) {
	client, pool, _ := start(t)
	defer func() {
		if recover() != "boom" || !reflect.DeepEqual(pool.doubts(), []bool{true}) {
			t.Errorf("released %v", pool.doubts())
		}
	}()
	client.RunWith(context.Background(), "bridge", patient, func(context.Context, *nspool.Lease) error { panic("boom") })
}

func TestWithReleases(t *testing.T) {
	client, pool, _ := start(t)
	boom := errors.New("boom")
	for _, result := range []error{nil, boom} {
		err := client.With(context.Background(), "bridge", patient, func(context.Context, *nspool.Lease) error {
			return result
		})
		if err != result {
			t.Errorf("%v, not %v", err, result)
		}
	}
	if doubts := pool.doubts(); !reflect.DeepEqual(doubts, []bool{false, true}) {
		t.Errorf("released %v", doubts)
	}
}
