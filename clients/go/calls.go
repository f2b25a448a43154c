package nspool

import (
	"context"
	"math/rand"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"nspool.dev/clients/go/nspoolv1"
)

// connection is one connection to the daemon. Its calls are sent again when the connection breaks, always the very same
// message: the daemon knows a repeated Allocate by its request id, the other calls are safe to repeat. It does not know
// what the calls mean.
type connection struct {
	endpoint string
	channel  *grpc.ClientConn
	stub     nspoolv1.NamespacePoolClient
	images   nspoolv1.ImageCacheClient
	// Ends when the client is closed; it ends every pause and every stream.
	life   context.Context
	end    context.CancelFunc
	joined sync.WaitGroup
}

func connect(endpoint string) (*connection, error) {
	options := []grpc.DialOption{
		// Deprecated in new grpc-go, but kept through 1.x; its successor is not in old ones.
		grpc.WithInsecure(),
		// A local daemon is back within a second or never. The defaults (1 s growing to 120 s) would leave functions on
		// the plain network for minutes after a restart that took 50 ms.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	target := endpoint
	if path := socketPath(endpoint); path != "" {
		// Old grpc-go has no resolver for unix sockets, and new ones would send what they make of the path as :authority.
		// Servers built on Rust's h2 (the daemon is one) find a path malformed there and reset the stream, so each call
		// would fail. "localhost" is what they accept.
		target = "passthrough:///nspool"
		options = append(options, grpc.WithAuthority("localhost"),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			}))
	}
	channel, err := grpc.Dial(target, options...)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	return &connection{
		endpoint: endpoint, channel: channel, stub: nspoolv1.NewNamespacePoolClient(channel),
		images: nspoolv1.NewImageCacheClient(channel), life: life, end: end,
	}, nil
}

// socketPath is the path in unix:/path or unix:///path, or empty.
func socketPath(endpoint string) string {
	if !strings.HasPrefix(endpoint, "unix:") {
		return ""
	}
	path := strings.TrimPrefix(endpoint, "unix:")
	if strings.HasPrefix(path, "///") {
		path = strings.TrimPrefix(path, "//")
	}
	return path
}

// limits bound one call: timeout all its tries together, retryFor the time in which a new one may begin.
type limits struct {
	timeout  time.Duration
	retryFor time.Duration
}

// call runs attempt until it has an answer. The error is an *Error.
func (c *connection) call(ctx context.Context, what string, l limits, attempt func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	lastBegin := time.Now().Add(l.retryFor)
	pauses := newPauses(10*time.Millisecond, 200*time.Millisecond)
	for {
		if c.life.Err() != nil {
			// Also a start that comes during the stop of its agent has the plain network to go to.
			return errorFrom(status.Error(codes.Canceled, "the client is closed"), what, c.endpoint)
		}
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		failure := errorFrom(err, what, c.endpoint)
		pause := pauses.next()
		if !failure.connectionLost() || time.Now().Add(pause).After(lastBegin) || !c.pause(ctx, pause) {
			return failure
		}
	}
}

// pause waits, and says whether there is still something to wait for.
func (c *connection) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-c.life.Done():
		return false
	}
}

// background runs work on a goroutine that close waits for.
func (c *connection) background(work func(ctx context.Context)) {
	c.joined.Add(1)
	go func() {
		defer c.joined.Done()
		work(c.life)
	}()
}

func (c *connection) close() error {
	c.end()
	c.joined.Wait()
	return c.channel.Close()
}

// pauses double from first to longest, each with up to half taken off at random.
type pauses struct {
	first, longest, upcoming time.Duration
}

func newPauses(first, longest time.Duration) *pauses {
	return &pauses{first: first, longest: longest, upcoming: first}
}

func (p *pauses) reset() { p.upcoming = p.first }

func (p *pauses) next() time.Duration {
	pause := p.upcoming
	p.upcoming *= 2
	if p.upcoming > p.longest {
		p.upcoming = p.longest
	}
	return pause/2 + time.Duration(rand.Int63n(int64(pause/2)+1))
}
