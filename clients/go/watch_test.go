package nspool_test

import (
	"testing"
	"time"

	nspool "nspool.dev/clients/go"
)

// watching gives a client whose watch stream is open, and the losses it is told.
func watching(t *testing.T) (*nspool.Client, *fakePool, chan nspool.LostLease) {
	t.Helper()
	client, pool, _ := start(t)
	lost := make(chan nspool.LostLease, 100)
	if err := client.OnLost(func(l nspool.LostLease) { lost <- l }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the watch begins", func() bool { return watches(pool) == 1 })
	return client, pool, lost
}

func watches(pool *fakePool) int {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	return len(pool.watchRequests)
}

func expect(t *testing.T, lost chan nspool.LostLease, lease *nspool.Lease) nspool.LostLease {
	t.Helper()
	select {
	case told := <-lost:
		if told.Lease != lease {
			t.Fatalf("told of %v, not of %v", told, lease)
		}
		return told
	case <-time.After(30 * time.Second):
		t.Fatalf("the loss of %v is not told", lease)
	}
	return nspool.LostLease{}
}

func TestALossIsTold(t *testing.T) {
	client, pool, lost := watching(t)
	lease := allocate(t, client, nspool.Request{})
	pool.lose(lease.Token, "the buddy died")
	if told := expect(t, lost, lease); told.Cause != "the buddy died" {
		t.Errorf("cause %q", told.Cause)
	}
	if state, _ := lease.State(); state != nspool.Lost {
		t.Errorf("state %v", state)
	}
}

func TestLossesOfOthersAreNotTold(t *testing.T) {
	client, pool, lost := watching(t)
	endpoint := endpointIn(t)
	server, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	theirs := allocate(t, newClient(t, endpoint, "other"), nspool.Request{})
	elsewhere := allocate(t, newClient(t, endpoint, "agent"), nspool.Request{})
	mine := allocate(t, client, nspool.Request{})
	for _, lease := range []*nspool.Lease{theirs, elsewhere, mine} {
		pool.lose(lease.Token, "")
	}
	if told := expect(t, lost, nil); told.LeaseID != elsewhere.LeaseID {
		t.Errorf("told of %v", told)
	}
	expect(t, lost, mine)
}

func TestAReconnectGoesOnFromThePosition(t *testing.T) {
	client, pool, lost := watching(t)
	first, second := allocate(t, client, nspool.Request{}), allocate(t, client, nspool.Request{})
	pool.lose(first.Token, "")
	expect(t, lost, first)
	pool.hangUp(func() {})
	waitFor(t, "a second watch", func() bool { return watches(pool) == 2 })
	pool.lose(second.Token, "")
	expect(t, lost, second)
	if request := pool.watchRequests[1]; request.GetPosition() != 1 {
		t.Errorf("went on from %v", request)
	}
}

func TestAResetBringsWhatWasMissedAndNothingTwice(t *testing.T) {
	client, pool, lost := watching(t)
	first, second, third := allocate(t, client, nspool.Request{}), allocate(t, client, nspool.Request{}),
		allocate(t, client, nspool.Request{})
	pool.lose(first.Token, "")
	expect(t, lost, first)
	pool.hangUp(func() {
		pool.leases[second.Token].State = nspool.Lost
		pool.forgottenBefore = 1000
	})
	expect(t, lost, second)
	pool.lose(third.Token, "")
	expect(t, lost, third)
}

func TestADaemonThatForgotAllLeases(t *testing.T) {
	client, pool, lost := watching(t)
	ended, forgotten := allocate(t, client, nspool.Request{}), allocate(t, client, nspool.Request{})
	pool.hangUp(func() {
		pool.leases[ended.Token].State = nspool.Ended
		delete(pool.leases, forgotten.Token)
		pool.forgottenBefore = 1000
	})
	expect(t, lost, forgotten)
	waitFor(t, "the ended lease is forgotten, not lost", func() bool { return client.Held() == 1 })
}

func TestWhatWasLostBeforeIsTold(t *testing.T) {
	client, pool, _ := start(t)
	lease := allocate(t, client, nspool.Request{})
	pool.lose(lease.Token, "")
	lost := make(chan nspool.LostLease, 1)
	if err := client.OnLost(func(l nspool.LostLease) { lost <- l }); err != nil {
		t.Fatal(err)
	}
	expect(t, lost, lease)
}

func TestADaemonThatComesBack(t *testing.T) {
	endpoint := endpointIn(t)
	pool := newFakePool()
	server, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	client := newClient(t, endpoint, "agent")
	lost := make(chan nspool.LostLease, 1)
	if err := client.OnLost(func(l nspool.LostLease) { lost <- l }); err != nil {
		t.Fatal(err)
	}
	lease := allocate(t, client, nspool.Request{})
	waitFor(t, "the watch begins", func() bool { return watches(pool) == 1 })
	server.Stop()
	again, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	waitFor(t, "a second watch", func() bool { return watches(pool) == 2 })
	pool.lose(lease.Token, "")
	expect(t, lost, lease)
}
