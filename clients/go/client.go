package nspool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"nspool.dev/clients/go/nspoolv1"
)

// DefaultEndpoint is where the daemon listens unless its config says otherwise.
const DefaultEndpoint = "unix:/run/nspool/nspool.sock"

// The lifetimes of a lease. Joiners is the daemon's default: it ends by itself when its containers are gone.
const (
	Joiners        = nspoolv1.Lifetime_LIFETIME_JOINERS
	TTL            = nspoolv1.Lifetime_LIFETIME_TTL
	WithConnection = nspoolv1.Lifetime_LIFETIME_CONNECTION
)

// maxHeld bounds what is remembered for OnLost and KeepAlive when a program never releases.
const maxHeld = 65536

var callLimits = limits{timeout: 5 * time.Second, retryFor: 5 * time.Second}

// What a call to the daemon may take beyond Request.Wait. The strict call has time for a restart of the daemon; the one
// with a way out has not, since the plain network costs a start less than waiting would. A healthy daemon answers within a
// millisecond.
const (
	allocateTimeout  = 5 * time.Second
	fallbackTimeout  = 500 * time.Millisecond
	fallbackRetryFor = 20 * time.Millisecond
)

// Config of a client. Its zero value is good for a look around.
type Config struct {
	// unix:/path or host:port. Empty: $NSPOOL_ENDPOINT, else DefaultEndpoint.
	Endpoint string
	// The agent's name for itself, stable over its restarts. Without it there is no Resume, and OnLost tells only of leases
	// that this client holds.
	Owner string
	// Recognises more errors of a start as explained by the lease, for engines whose errors have neither an HTTP status nor
	// the name of the namespace in them.
	Explains func(err error, lease *Lease) bool
	// Where one-line messages go. Nil: log.Printf.
	Logf func(format string, args ...interface{})
}

// Request is what one allocation asks for. Its zero value is a good one.
type Request struct {
	// The same one again gives the same lease. Empty: a new random one.
	RequestID string
	Tenant    string
	// One of the daemon's networks; empty: any of them.
	Network string
	// Zero: Joiners.
	Lifetime nspoolv1.Lifetime
	// How long to wait for the first joiner; zero: the daemon's default.
	JoinBy time.Duration
	// Required with lifetime TTL.
	TTL time.Duration
	// How long the daemon may wait for a slot to become ready.
	Wait   time.Duration
	Labels map[string]string
	// Bounds the whole call. Zero: Wait and 5 s, with a way out Wait and 0.5 s.
	Timeout time.Duration
	// For how long a lost connection leads to another try. Zero: the whole timeout, with a way out 20 ms: one prompt reconnect.
	RetryFor time.Duration
}

// Client speaks with one daemon, as one owner. It is safe to use from many goroutines.
type Client struct {
	owner      string
	explains   func(error, *Lease) bool
	logf       func(string, ...interface{})
	connection *connection

	mu   sync.Mutex
	held map[string]*Lease
	// Told each time a lease with a ttl is allocated; nil until KeepAlive.
	wake  chan struct{}
	watch *lostWatch
}

// New makes a client. It connects at the first call, so a daemon that is not there is no error here.
func New(config Config) (*Client, error) {
	endpoint := config.Endpoint
	if endpoint == "" {
		endpoint = os.Getenv("NSPOOL_ENDPOINT")
	}
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	connection, err := connect(endpoint)
	if err != nil {
		return nil, fmt.Errorf("nspool endpoint %q: %w", endpoint, err)
	}
	client := &Client{
		owner: config.Owner, explains: config.Explains, logf: config.Logf, connection: connection,
		held: map[string]*Lease{},
	}
	if client.logf == nil {
		client.logf = log.Printf
	}
	return client, nil
}

// Close ends what runs in the background, waits for it, and closes the connection. It releases nothing. A callback of
// OnLost must not call it: it would wait for itself.
func (c *Client) Close() error {
	c.mu.Lock()
	c.connection.end()
	c.mu.Unlock()
	return c.connection.close()
}

// Allocate takes a ready namespace. The error is an *Error. A connection that breaks leads to another try with the same
// request id, which gives the same lease if the first try had got one.
func (c *Client) Allocate(ctx context.Context, request Request) (*Lease, error) {
	message, err := c.allocateRequest(request)
	if err != nil {
		return nil, err
	}
	within := limits{timeout: request.Timeout, retryFor: request.RetryFor}
	if within.timeout == 0 {
		within.timeout = request.Wait + allocateTimeout
	}
	if within.retryFor == 0 {
		within.retryFor = within.timeout
	}
	var answer *nspoolv1.AllocateResponse
	err = c.connection.call(ctx, "allocate", within, func(ctx context.Context) (err error) {
		answer, err = c.connection.stub.Allocate(ctx, message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.adoptGranted(answer.GetLease())
}

func (c *Client) allocateRequest(request Request) (*nspoolv1.AllocateRequest, error) {
	id := request.RequestID
	if id == "" {
		random := make([]byte, 16)
		if _, err := rand.Read(random); err != nil {
			return nil, fmt.Errorf("a request id: %w", err)
		}
		id = hex.EncodeToString(random)
	}
	return &nspoolv1.AllocateRequest{
		RequestId: id, Owner: c.owner, Tenant: request.Tenant, Network: request.Network, Lifetime: request.Lifetime,
		JoinBy: toProto(request.JoinBy), Ttl: toProto(request.TTL), Wait: toProto(request.Wait), Labels: request.Labels,
	}, nil
}

// AllocateOrFallback is Allocate with a way out: when there is no lease to be had, for whatever reason, it gives the plain
// network. The error is not nil only for a mistake of the caller (Error.Mistake).
func (c *Client) AllocateOrFallback(ctx context.Context, plainNetwork string, request Request) (*Lease, error) {
	if request.Timeout == 0 {
		request.Timeout = request.Wait + fallbackTimeout
	}
	if request.RetryFor == 0 {
		request.RetryFor = fallbackRetryFor
	}
	lease, err := c.Allocate(ctx, request)
	if err == nil {
		return lease, nil
	}
	var failure *Error
	if errors.As(err, &failure) && failure.Mistake() {
		return nil, err
	}
	c.logf("%v; using network %s", err, plainNetwork)
	return plainLease(plainNetwork, err), nil
}

// Resume gives all leases of this owner, with their tokens: what an agent asks for after its own restart.
func (c *Client) Resume(ctx context.Context) ([]*Lease, error) {
	if c.owner == "" {
		return nil, errors.New("resume: the client has no owner; give one that is stable over restarts")
	}
	var leases []*Lease
	err := c.connection.call(ctx, "resume", callLimits, func(ctx context.Context) error {
		leases = nil
		stream, err := c.connection.stub.Resume(ctx, &nspoolv1.ResumeRequest{Owner: c.owner})
		for err == nil {
			var answer *nspoolv1.ResumeResponse
			if answer, err = stream.Recv(); err == nil {
				var lease *Lease
				lease, err = c.adopt(answer.GetLease(), "resume")
				leases = append(leases, lease)
			}
		}
		if err == io.EOF {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return leases, nil
}

// Info says who answers, on which engine, with which networks.
func (c *Client) Info(ctx context.Context) (answer *nspoolv1.GetInfoResponse, err error) {
	err = c.connection.call(ctx, "get info", callLimits, func(ctx context.Context) (err error) {
		answer, err = c.connection.stub.GetInfo(ctx, &nspoolv1.GetInfoRequest{})
		return err
	})
	return answer, err
}

// Usage says how many slots are in which state.
func (c *Client) Usage(ctx context.Context) (answer *nspoolv1.GetUsageResponse, err error) {
	err = c.connection.call(ctx, "get usage", callLimits, func(ctx context.Context) (err error) {
		answer, err = c.connection.stub.GetUsage(ctx, &nspoolv1.GetUsageRequest{})
		return err
	})
	return answer, err
}

func (c *Client) adoptGranted(message *nspoolv1.Lease) (*Lease, error) {
	lease, err := c.adopt(message, "allocate")
	if err != nil {
		return nil, err
	}
	state, cause := lease.State()
	if state == Active {
		return lease, nil
	}
	// A repeated request whose lease was lost in between: it is of no use, but it is still ours to give back.
	lease.ReleaseAs(true)
	return nil, &Error{
		What: "allocate", Endpoint: c.connection.endpoint, Code: codes.FailedPrecondition, Reason: reasonOf(state),
		Message: fmt.Sprintf("lease %s: %s", lease.LeaseID, cause),
	}
}

func reasonOf(state nspoolv1.LeaseState) string {
	if state == Lost {
		return "LEASE_LOST"
	}
	return "LEASE_ENDED"
}

// adopt makes a lease of the daemon's answer and remembers it.
func (c *Client) adopt(message *nspoolv1.Lease, what string) (*Lease, error) {
	lease, err := newLease(c, message)
	if err != nil {
		text := status.Error(codes.DataLoss, "the daemon's answer is not a lease: "+err.Error())
		return nil, errorFrom(text, what, c.connection.endpoint)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held) >= maxHeld {
		c.logf("%d leases are not released; lease %s is not kept alive", maxHeld, lease.LeaseID)
		return lease, nil
	}
	c.held[lease.LeaseID] = lease
	if c.wake != nil && lease.Lifetime == TTL {
		select {
		case c.wake <- struct{}{}:
		default: // It has been told already, and has yet to look.
		}
	}
	return lease, nil
}

func (c *Client) forget(leaseID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.held, leaseID)
}

// holds gives the leases that this client got and has not released, by id.
func (c *Client) holds() map[string]*Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := make(map[string]*Lease, len(c.held))
	for id, lease := range c.held {
		held[id] = lease
	}
	return held
}

func codeOf(err error) codes.Code {
	var failure *Error
	if errors.As(err, &failure) {
		return failure.Code
	}
	return codes.Unknown
}
