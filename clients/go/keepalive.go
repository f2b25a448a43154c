package nspool

import (
	"context"
	"errors"
	"io"
	"time"

	"nspool.dev/clients/go/nspoolv1"
)

// Between two rounds of KeepAlive: never more, so that a missed round is noticed early, and never less, so that a tiny ttl
// makes no busy loop. After a failed round the next one comes sooner.
const (
	longestRound  = 5 * time.Second
	shortestRound = 50 * time.Millisecond
	retryRound    = 200 * time.Millisecond
)

// The daemon refuses large messages; so many tokens of 32 characters are far below its limit.
const tokensAMessage = 1000

// KeepAlive renews all leases with lifetime TTL that this client holds, on a goroutine of its own, until Close. With
// interval zero it does so after a third of the shortest remaining time, at most 5 s. A lease that the daemon reports as
// lost goes to the callbacks of OnLost.
func (c *Client) KeepAlive(interval time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connection.life.Err() != nil {
		return errors.New("keep alive: the client is closed")
	}
	if c.wake == nil {
		c.wake = make(chan struct{}, 1)
		k := &keepAlive{client: c, interval: interval, wake: c.wake}
		c.connection.background(k.run)
	}
	return nil
}

type keepAlive struct {
	client   *Client
	interval time.Duration
	wake     chan struct{}
}

func (k *keepAlive) run(ctx context.Context) {
	lastRound := time.Now()
	for ctx.Err() == nil {
		leases := k.leases()
		if pause := time.Until(lastRound.Add(k.pause(leases))); pause > 0 {
			k.wait(ctx, pause)
			continue
		}
		lastRound = time.Now()
		if err := k.renew(ctx, leases); err != nil && ctx.Err() == nil {
			k.client.logf("%v; trying again", err)
			lastRound = time.Time{}
			k.client.connection.pause(ctx, retryRound)
		}
	}
}

func (k *keepAlive) wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.wake:
	case <-ctx.Done():
	}
}

func (k *keepAlive) leases() map[string]*Lease {
	byToken := map[string]*Lease{}
	for _, lease := range k.client.holds() {
		if lease.Lifetime == TTL && lease.released() == nil {
			byToken[lease.Token] = lease
		}
	}
	return byToken
}

func (k *keepAlive) pause(leases map[string]*Lease) time.Duration {
	if k.interval > 0 {
		return k.interval
	}
	pause := longestRound
	for _, lease := range leases {
		lease.mu.Lock()
		third := lease.remaining / 3
		lease.mu.Unlock()
		if third < pause {
			pause = third
		}
	}
	if pause < shortestRound {
		return shortestRound
	}
	return pause
}

// renew is one round: all tokens are sent, all answers read, and the stream is done.
func (k *keepAlive) renew(ctx context.Context, leases map[string]*Lease) error {
	if len(leases) == 0 {
		return nil
	}
	c := k.client.connection
	return c.call(ctx, "keep-alive", limits{timeout: longestRound}, func(ctx context.Context) error {
		stream, err := c.stub.KeepAlive(ctx)
		if err != nil {
			return err
		}
		for _, request := range keepAliveRequests(leases) {
			// The cause of a broken stream comes with Recv, not with Send.
			if err := stream.Send(request); err != nil {
				break
			}
			for range request.Tokens {
				answer, err := stream.Recv()
				if err != nil {
					return err
				}
				k.onAnswer(leases[answer.GetToken()], answer)
			}
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		if _, err = stream.Recv(); err == io.EOF {
			return nil
		}
		return err
	})
}

func keepAliveRequests(leases map[string]*Lease) []*nspoolv1.KeepAliveRequest {
	var requests []*nspoolv1.KeepAliveRequest
	last := &nspoolv1.KeepAliveRequest{}
	for token := range leases {
		last.Tokens = append(last.Tokens, token)
		if len(last.Tokens) == tokensAMessage {
			requests = append(requests, last)
			last = &nspoolv1.KeepAliveRequest{}
		}
	}
	if len(last.Tokens) > 0 {
		requests = append(requests, last)
	}
	return requests
}

func (k *keepAlive) onAnswer(lease *Lease, answer *nspoolv1.KeepAliveResponse) {
	if lease == nil {
		return
	}
	if answer.GetReason() == "" {
		lease.setRemaining(fromProto(answer.GetRemaining()))
		return
	}
	k.client.logf("lease %s cannot be renewed: %s", lease.LeaseID, answer.GetReason())
	k.client.forget(lease.LeaseID)
	if answer.GetReason() == "LEASE_ENDED" {
		lease.setState(Ended, answer.GetReason())
		return
	}
	lease.setState(Lost, answer.GetReason())
	k.client.mu.Lock()
	watch := k.client.watch
	k.client.mu.Unlock()
	if watch != nil {
		watch.tell(LostLease{lease.LeaseID, lease.NamespaceID, answer.GetReason(), lease})
	}
}
