package nspool

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

// For how long the daemon may lag behind the engine in noticing a death, and how often it is asked.
const (
	noticeWithin = 200 * time.Millisecond
	askEvery     = 25 * time.Millisecond
)

// RunWith allocates or falls back, and calls start with the outcome. Start creates and starts a container, and undoes what
// it did when it fails. The caller releases the lease when the function has ended.
//
// When start fails in a leased namespace and the lease explains that (lost, ended, unknown, the daemon gone, or the engine
// found nothing to join), the lease is released as doubtful and start is called once more, with the plain network. Any
// other failure is returned as it is, after the release; so is a panic.
func (c *Client) RunWith(
	ctx context.Context, plainNetwork string, request Request, start func(context.Context, *Lease) error,
) (*Lease, error) {
	lease, err := c.AllocateOrFallback(ctx, plainNetwork, request)
	if err != nil {
		return nil, err
	}
	err = lease.attempt(ctx, start)
	if err == nil {
		return lease, nil
	}
	if !lease.Leased {
		return nil, err
	}
	explained := ctx.Err() == nil && c.leaseExplains(ctx, err, lease)
	lease.ReleaseAs(true)
	if !explained {
		return nil, err
	}
	c.logf("start in %v failed (%v); trying network %s", lease, err, plainNetwork)
	plain := plainLease(plainNetwork, err)
	if err := start(ctx, plain); err != nil {
		return nil, err
	}
	return plain, nil
}

// With allocates or falls back, calls body, and releases. The release is doubtful when body fails or panics: a create or
// start may be under way then. There is no second try; see RunWith.
func (c *Client) With(
	ctx context.Context, plainNetwork string, request Request, body func(context.Context, *Lease) error,
) error {
	lease, err := c.AllocateOrFallback(ctx, plainNetwork, request)
	if err != nil {
		return err
	}
	err = lease.attempt(ctx, body)
	if err != nil {
		lease.MarkDoubtful()
	}
	lease.Release(ctx)
	return err
}

// attempt calls work, and releases the lease as doubtful when work does not come back by itself.
func (l *Lease) attempt(ctx context.Context, work func(context.Context, *Lease) error) error {
	cameBack := false
	defer func() {
		if !cameBack {
			l.ReleaseAs(true)
		}
	}()
	err := work(ctx, l)
	cameBack = true
	return err
}

// leaseExplains says whether the state of the lease, rather than the function, can be why a start in its namespace failed.
// The engine may refuse before the daemon has noticed the death of the buddy; both learn of it within milliseconds of each
// other, so the daemon is asked for a short while, not just once.
func (c *Client) leaseExplains(ctx context.Context, err error, lease *Lease) bool {
	if nothingToJoin(err) || names(err, lease) || (c.explains != nil && c.explains(err, lease)) {
		return true
	}
	giveUp := time.Now().Add(noticeWithin)
	for {
		state, err := lease.refresh(ctx, limits{timeout: noticeWithin})
		if err != nil {
			// Not known any more, or nobody there to ask.
			return true
		}
		if state != Active {
			return true
		}
		if time.Now().After(giveUp) || !c.connection.pause(ctx, askEvery) {
			return false
		}
	}
}

// nothingToJoin knows the ways in which client libraries of engines say 404 (nobody there) and 409 (a stopped container):
// Docker's marker methods, and a status code.
func nothingToJoin(err error) bool {
	var notFound interface{ NotFound() }
	var conflict interface{ Conflict() }
	var coded interface{ StatusCode() int }
	if errors.As(err, &notFound) || errors.As(err, &conflict) {
		return true
	}
	if errors.As(err, &coded) {
		return coded.StatusCode() == http.StatusNotFound || coded.StatusCode() == http.StatusConflict
	}
	return false
}

func names(err error, lease *Lease) bool {
	text := err.Error()
	return strings.Contains(text, lease.NamespaceID) ||
		(lease.ContainerID != "" && strings.Contains(text, lease.ContainerID))
}
