package nspool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"nspool.dev/clients/go/nspoolv1"
)

// The states of a lease, as the daemon says them. Lost: the namespace is gone or not to be trusted; release it.
const (
	Active = nspoolv1.LeaseState_LEASE_STATE_ACTIVE
	Lost   = nspoolv1.LeaseState_LEASE_STATE_LOST
	Ended  = nspoolv1.LeaseState_LEASE_STATE_ENDED
)

// Outcome says what became of a release.
type Outcome string

// The outcomes of a release.
const (
	Returned Outcome = "returned"
	// Returned, but a container is still in the namespace; the slot waits for that one.
	JoinerStillThere Outcome = "joiner still there"
	AlreadyReleased  Outcome = "already released"
	// It had ended by itself; Released.Cause says why.
	AlreadyEnded Outcome = "already ended"
	// The daemon does not know the lease (any more).
	UnknownLease Outcome = "unknown"
	// The daemon could not be told; Released.Err says why. The lease ends by its lifetime.
	NotDelivered Outcome = "not delivered"
	// It was the plain network: there was nothing to release.
	NotLeased Outcome = "not leased"
)

// Released is the answer to a release.
type Released struct {
	Outcome Outcome
	Cause   string
	Err     error
}

// A restart of the daemon is over within retryFor, or the function's end should not wait for it: a lease that nobody
// releases ends by its lifetime, and costs the pool one buddy.
var releaseLimits = limits{timeout: 2 * time.Second, retryFor: 500 * time.Millisecond}

// Lease is what a function start gets: one hand-out of a ready namespace, or, when Leased is false, the plain network in
// the same shape. Its exported fields are what the daemon said at the allocation, and do not change.
type Lease struct {
	// False for the plain network.
	Leased bool
	// Why this is the plain network; nil for a lease.
	FallbackCause error
	// A secret: whoever has it can release the lease. It is in no text that this package makes.
	Token   string
	LeaseID string
	// The name of the namespace in the engine; empty for the plain network.
	NamespaceID string
	// For HostConfig.NetworkMode, or --network of the engine's command line.
	NetworkMode string
	// JSON to merge into a container create: {"HostConfig": {…}, "Labels": {…}}. See MergeInto.
	HostConfig  string
	ContainerID string
	NetnsPath   string
	Network     string
	IPAddresses []string
	Gateways    []string
	MTU         uint32
	ResolvConf  string
	Slot        uint32
	Generation  uint64
	Use         uint64
	Owner       string
	Tenant      string
	Labels      map[string]string
	Lifetime    nspoolv1.Lifetime

	client *Client

	mu        sync.Mutex
	state     nspoolv1.LeaseState
	cause     string
	remaining time.Duration
	doubtful  bool
	delivered *Released
}

func plainLease(network string, cause error) *Lease {
	mode, _ := json.Marshal(network) // A string always has a JSON form.
	return &Lease{
		NetworkMode: network, Network: network, FallbackCause: cause,
		HostConfig: fmt.Sprintf(`{"HostConfig":{"NetworkMode":%s},"Labels":{}}`, mode),
	}
}

func newLease(client *Client, m *nspoolv1.Lease) (*Lease, error) {
	if m.GetToken() == "" || m.GetNamespaceId() == "" {
		return nil, errors.New("it has no token or no namespace")
	}
	if m.HostConfig != "" && !json.Valid([]byte(m.HostConfig)) {
		return nil, errors.New("its host_config is not JSON")
	}
	lease := &Lease{
		Leased: true, Token: m.Token, LeaseID: m.LeaseId, NamespaceID: m.NamespaceId, NetworkMode: m.NetworkMode,
		HostConfig: m.HostConfig, ContainerID: m.ContainerId, NetnsPath: m.NetnsPath, Network: m.Network,
		IPAddresses: m.IpAddresses, Gateways: m.Gateways, MTU: m.Mtu, ResolvConf: m.ResolvConf, Slot: m.Slot,
		Generation: m.Generation, Use: m.Use, Owner: m.Owner, Tenant: m.Tenant, Labels: m.Labels, Lifetime: m.Lifetime,
		client: client, state: m.State, cause: m.Cause, remaining: fromProto(m.Remaining),
	}
	if lease.NetworkMode == "" {
		lease.NetworkMode = "container:" + lease.NamespaceID
	}
	return lease, nil
}

// String leaves the token out: this text ends up in logs.
func (l *Lease) String() string {
	if !l.Leased {
		return "network " + l.NetworkMode
	}
	state, _ := l.State()
	return fmt.Sprintf("lease %s (%s, %v)", l.LeaseID, l.NetworkMode, state)
}

// GoString is String: %#v would show the token.
func (l *Lease) GoString() string { return l.String() }

// State is what the daemon said last, and its cause. It is zero for the plain network.
func (l *Lease) State() (nspoolv1.LeaseState, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.cause
}

func (l *Lease) setState(state nspoolv1.LeaseState, cause string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.cause = state, cause
}

// MarkDoubtful says that a create or start of the caller's in this namespace may be under way: a call to the engine ended
// without an answer. The release then says so too, and the buddy is not used again.
func (l *Lease) MarkDoubtful() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubtful = true
}

// Release gives the lease back; it is made for defer, and safe to repeat. The release is doubtful when MarkDoubtful was
// called, or when ctx has ended: whoever was cancelled does not know whether the engine carries the last call out. The end
// of ctx does not stop the release itself, which takes at most two seconds.
func (l *Lease) Release(ctx context.Context) Released {
	l.mu.Lock()
	doubtful := l.doubtful || ctx.Err() != nil
	l.mu.Unlock()
	return l.ReleaseAs(doubtful)
}

// ReleaseAs is Release for those who know. With doubtful false the caller says that no create or start of theirs is under
// way in the namespace; only then may its buddy be used again.
func (l *Lease) ReleaseAs(doubtful bool) Released {
	if !l.Leased {
		return Released{Outcome: NotLeased}
	}
	if before := l.released(); before != nil {
		return Released{Outcome: AlreadyReleased, Cause: before.Cause}
	}
	request := &nspoolv1.ReleaseRequest{Token: l.Token, Doubtful: doubtful}
	var answer *nspoolv1.ReleaseResponse
	c := l.client.connection
	err := c.call(context.Background(), "release of lease "+l.LeaseID, releaseLimits, func(ctx context.Context) (err error) {
		answer, err = c.stub.Release(ctx, request)
		return err
	})
	released := Released{Outcome: outcomeOf(answer.GetOutcome()), Cause: answer.GetCause()}
	if err != nil {
		released = Released{Outcome: UnknownLease, Err: err}
		if codeOf(err) != codes.NotFound {
			l.client.logf("%v; the lease ends by its lifetime", err)
			return Released{Outcome: NotDelivered, Err: err}
		}
	}
	l.mu.Lock()
	l.delivered = &released
	l.mu.Unlock()
	l.client.forget(l.LeaseID)
	return released
}

func (l *Lease) released() *Released {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delivered
}

func outcomeOf(outcome nspoolv1.ReleaseOutcome) Outcome {
	switch outcome {
	case nspoolv1.ReleaseOutcome_RELEASE_OUTCOME_JOINER_STILL_THERE:
		return JoinerStillThere
	case nspoolv1.ReleaseOutcome_RELEASE_OUTCOME_ALREADY_RELEASED:
		return AlreadyReleased
	case nspoolv1.ReleaseOutcome_RELEASE_OUTCOME_ALREADY_ENDED:
		return AlreadyEnded
	}
	return Returned
}

// Renew moves the expiry of a lease with a ttl, and says how much remains. With ttl zero it is the one that was allocated
// with. The error is an *Error; its Reason is LEASE_LOST or LEASE_ENDED when there is nothing left to renew.
func (l *Lease) Renew(ctx context.Context, ttl time.Duration) (time.Duration, error) {
	if !l.Leased {
		return 0, errors.New("renew: the plain network has no expiry")
	}
	request := &nspoolv1.RenewRequest{Token: l.Token, Ttl: toProto(ttl)}
	var answer *nspoolv1.RenewResponse
	c := l.client.connection
	err := c.call(ctx, "renewal of lease "+l.LeaseID, callLimits, func(ctx context.Context) (err error) {
		answer, err = c.stub.Renew(ctx, request)
		return err
	})
	if err != nil {
		return 0, err
	}
	return l.setRemaining(fromProto(answer.Remaining)), nil
}

func (l *Lease) setRemaining(remaining time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remaining = remaining
	return remaining
}

// Refresh asks the daemon for the state. The error is an *Error, with code NotFound when it does not know the lease.
func (l *Lease) Refresh(ctx context.Context) (nspoolv1.LeaseState, error) {
	return l.refresh(ctx, callLimits)
}

func (l *Lease) refresh(ctx context.Context, within limits) (nspoolv1.LeaseState, error) {
	if !l.Leased {
		return Active, nil
	}
	request := &nspoolv1.GetLeaseRequest{Token: l.Token}
	var answer *nspoolv1.GetLeaseResponse
	c := l.client.connection
	err := c.call(ctx, "look at lease "+l.LeaseID, within, func(ctx context.Context) (err error) {
		answer, err = c.stub.GetLease(ctx, request)
		return err
	})
	if err != nil {
		return 0, err
	}
	l.setState(answer.GetLease().GetState(), answer.GetLease().GetCause())
	return answer.GetLease().GetState(), nil
}

// MergeInto merges HostConfig into the JSON body of a container create: objects key by key, lists joined without repeats,
// and for all else the lease's value in place of the body's.
func (l *Lease) MergeInto(createBody []byte) ([]byte, error) {
	var below, above map[string]interface{}
	if err := json.Unmarshal(createBody, &below); err != nil {
		return nil, fmt.Errorf("body of a container create: %w", err)
	}
	if l.HostConfig != "" {
		if err := json.Unmarshal([]byte(l.HostConfig), &above); err != nil {
			return nil, fmt.Errorf("host_config of %v: %w", l, err)
		}
	}
	merged := merge(below, above).(map[string]interface{})
	mode := map[string]interface{}{"HostConfig": map[string]interface{}{"NetworkMode": l.NetworkMode}}
	return json.Marshal(merge(merged, mode))
}

func merge(below, above interface{}) interface{} {
	switch over := above.(type) {
	case map[string]interface{}:
		merged := map[string]interface{}{}
		under, _ := below.(map[string]interface{})
		for key, value := range under {
			merged[key] = value
		}
		for key, value := range over {
			merged[key] = merge(under[key], value)
		}
		return merged
	case []interface{}:
		under, _ := below.([]interface{})
		return joinLists(under, over)
	}
	return above
}

func joinLists(under, over []interface{}) []interface{} {
	joined := append([]interface{}{}, under...)
	seen := map[string]bool{}
	for _, value := range under {
		seen[fmt.Sprint(value)] = true
	}
	for _, value := range over {
		if !seen[fmt.Sprint(value)] {
			joined = append(joined, value)
		}
	}
	return joined
}
