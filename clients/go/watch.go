package nspool

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"nspool.dev/clients/go/nspoolv1"
)

// toldMax bounds how many losses are remembered as told, far above what one reset can bring.
const toldMax = 65536

// LostLease is a lease of this client's owner whose namespace is gone or not to be trusted.
type LostLease struct {
	LeaseID     string
	NamespaceID string
	// In the daemon's words.
	Cause string
	// The lease itself when this client holds it: to be released once the function has ended. Else nil.
	Lease *Lease
}

// OnLost has callback called for each lease of this owner that is lost, once, on a goroutine of the client's that runs
// until Close. It covers what was lost before: a lost lease stays so until it is released.
//
// A daemon that is away loses no lease by that alone, so nothing is told then; the goroutine reconnects, and goes on from
// the last position. After a Reset it compares the snapshot with what the client holds.
func (c *Client) OnLost(callback func(LostLease)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connection.life.Err() != nil {
		return errors.New("on lost: the client is closed")
	}
	if c.watch == nil {
		c.watch = &lostWatch{client: c, told: map[string]bool{}, pauses: newPauses(100*time.Millisecond, 5*time.Second)}
		c.connection.background(c.watch.run)
	}
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.callbacks = append(c.watch.callbacks, callback)
	return nil
}

// lostWatch follows the daemon's Watch stream. It does not know what an agent does about a loss.
type lostWatch struct {
	client *Client
	pauses *pauses
	// Where to go on from; nil: with a snapshot. Only the goroutine of run touches it.
	position *uint64

	mu        sync.Mutex
	callbacks []func(LostLease)
	told      map[string]bool
	// The ids in told, oldest first.
	toldOrder []string
}

func (w *lostWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.follow(ctx)
		if err != nil && err != io.EOF && ctx.Err() == nil {
			w.client.logf("%v; connecting again", errorFrom(err, "watch", w.client.connection.endpoint))
		}
		w.client.connection.pause(ctx, w.pauses.next())
	}
}

// follow opens the stream and handles its messages until it ends; the error says why it did.
func (w *lostWatch) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Taken before the stream is opened: a lease that is allocated later may well be missing in its snapshot.
	held := w.client.holds()
	request := &nspoolv1.WatchRequest{}
	if w.position != nil {
		request.MaybePosition = &nspoolv1.WatchRequest_Position{Position: *w.position}
	}
	stream, err := w.client.connection.stub.Watch(ctx, request)
	for err == nil {
		var message *nspoolv1.WatchResponse
		if message, err = stream.Recv(); err == nil {
			w.pauses.reset()
			err = w.handle(ctx, message, held)
		}
	}
	return err
}

func (w *lostWatch) handle(ctx context.Context, message *nspoolv1.WatchResponse, held map[string]*Lease) error {
	switch event := message.Event.(type) {
	case *nspoolv1.WatchResponse_Lost:
		w.onLost(event.Lost)
	case *nspoolv1.WatchResponse_Ending:
		if event.Ending.GetState() == Ended {
			w.client.forget(event.Ending.GetLeaseId())
		}
	case *nspoolv1.WatchResponse_Snapshot:
		if err := w.onSnapshot(ctx, event.Snapshot, held); err != nil {
			// A lease could not be looked up: only a new snapshot will show it again.
			w.position = nil
			return err
		}
	}
	// A Reset is followed by a snapshot, which says all there is to know; the other kinds are not for us.
	position := message.GetPosition()
	w.position = &position
	return nil
}

func (w *lostWatch) onLost(event *nspoolv1.LeaseEvent) {
	lease := w.client.holds()[event.GetLeaseId()]
	owner := w.client.owner
	if lease == nil && (owner == "" || event.GetOwner() != owner) {
		return
	}
	w.tell(LostLease{event.GetLeaseId(), event.GetNamespaceId(), event.GetCause(), lease})
}

func (w *lostWatch) onSnapshot(ctx context.Context, snapshot *nspoolv1.Snapshot, held map[string]*Lease) error {
	present := map[string]bool{}
	for _, event := range snapshot.GetLeases() {
		present[event.GetLeaseId()] = true
		if event.GetState() == Lost {
			w.onLost(event)
		}
	}
	for id, lease := range held {
		if present[id] || lease.released() != nil {
			continue
		}
		if err := w.lookUp(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

// lookUp asks for a lease that a snapshot does not have: it has ended, or the daemon forgot all leases.
func (w *lostWatch) lookUp(ctx context.Context, lease *Lease) error {
	state, err := lease.refresh(ctx, limits{timeout: callLimits.timeout})
	_, cause := lease.State()
	if err != nil {
		if codeOf(err) != codes.NotFound {
			return err
		}
		state, cause = Lost, "the daemon does not know the lease any more"
	}
	switch state {
	case Lost:
		w.tell(LostLease{lease.LeaseID, lease.NamespaceID, cause, lease})
	case Ended:
		w.client.forget(lease.LeaseID)
	}
	return nil
}

// tell calls the callbacks, once for each lease.
func (w *lostWatch) tell(lost LostLease) {
	w.mu.Lock()
	if w.told[lost.LeaseID] {
		w.mu.Unlock()
		return
	}
	w.told[lost.LeaseID] = true
	w.toldOrder = append(w.toldOrder, lost.LeaseID)
	if len(w.toldOrder) > toldMax {
		delete(w.told, w.toldOrder[0])
		w.toldOrder = w.toldOrder[1:]
	}
	callbacks := append([]func(LostLease){}, w.callbacks...)
	w.mu.Unlock()
	if lost.Lease != nil {
		lost.Lease.setState(Lost, lost.Cause)
	}
	for _, callback := range callbacks {
		callback(lost)
	}
}
