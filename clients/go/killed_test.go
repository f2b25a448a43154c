package nspool_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	nspool "nspool.dev/clients/go"
)

const (
	workers = 8
	kills   = 4
	// With this in the environment the test program is a fake daemon on the socket it names.
	actAsDaemon = "NSPOOL_TEST_ACT_AS_DAEMON"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(actAsDaemon); endpoint != "" {
		if _, err := newFakePool().serve(endpoint); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {} // Until it is killed.
	}
	os.Exit(m.Run())
}

// daemon is one in a process of its own, that is killed and started again.
type daemon struct {
	t        *testing.T
	endpoint string
	command  []string
	env      []string
	log      string
	process  *exec.Cmd
}

// eachDaemon runs test against the fake daemon, and against the one that NSPOOL_TEST_DAEMON names.
func eachDaemon(t *testing.T, test func(*testing.T, *daemon)) {
	t.Run("fake", func(t *testing.T) {
		endpoint := endpointIn(t)
		runDaemon(t, test, &daemon{endpoint: endpoint, command: []string{os.Args[0]}, env: []string{actAsDaemon + "=" + endpoint}})
	})
	t.Run("daemon", func(t *testing.T) {
		command := strings.Fields(os.Getenv("NSPOOL_TEST_DAEMON"))
		if len(command) == 0 {
			if os.Getenv("NSPOOL_TEST_WITHOUT_DAEMON") != "" {
				t.Skip("--without-daemon")
			}
			t.Fatal("NSPOOL_TEST_DAEMON is not set: name a daemon to test with, or run test.sh --without-daemon")
		}
		endpoint := endpointIn(t)
		runDaemon(t, test, &daemon{endpoint: endpoint, command: append(command, endpoint)})
	})
}

func runDaemon(t *testing.T, test func(*testing.T, *daemon), d *daemon) {
	d.t, d.log = t, filepath.Join(t.TempDir(), "log")
	d.start()
	defer d.kill()
	d.waitUntilItGrants()
	test(t, d)
}

func (d *daemon) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.process = exec.Command(d.command[0], d.command[1:]...)
	d.process.Env = append(os.Environ(), d.env...)
	d.process.Dir = os.Getenv("NSPOOL_TEST_CWD")
	d.process.Stdout, d.process.Stderr = log, log
	if err := d.process.Start(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) signal(signal syscall.Signal) {
	d.t.Helper()
	if err := d.process.Process.Signal(signal); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) kill() {
	d.process.Process.Kill()
	d.process.Wait() // Its error says that it was killed.
}

// waitUntilItGrants fails with the daemon's own words when it is broken.
func (d *daemon) waitUntilItGrants() {
	d.t.Helper()
	client := newClient(d.t, d.endpoint, "")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		lease, err := client.Allocate(context.Background(), nspool.Request{Timeout: time.Second})
		if err == nil {
			lease.ReleaseAs(false)
			return
		}
		var status syscall.WaitStatus
		ended, _ := syscall.Wait4(d.process.Process.Pid, &status, syscall.WNOHANG, nil)
		if ended > 0 || time.Now().After(deadline) {
			words, _ := os.ReadFile(d.log)
			d.t.Fatalf("%v grants nothing: %v\n%s", d.command, err, words)
		}
	}
}

// load is workers that start functions as fast as they can, and count where those run.
type load struct {
	t             *testing.T
	pooled, plain int64
	slowest       int64
	failures      chan error
	stop          context.CancelFunc
	joined        sync.WaitGroup
}

func startLoad(t *testing.T, client *nspool.Client) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{t: t, failures: make(chan error, workers), stop: stop}
	for i := 0; i < workers; i++ {
		l.joined.Add(1)
		go func() {
			defer l.joined.Done()
			for ctx.Err() == nil {
				if err := l.runFunction(client); err != nil {
					l.failures <- err
					return
				}
			}
		}()
	}
	return l
}

func (l *load) runFunction(client *nspool.Client) error {
	ctx := context.Background()
	begin := time.Now()
	lease, err := client.RunWith(ctx, "bridge", nspool.Request{}, startFunction)
	if err != nil {
		return err
	}
	defer lease.Release(ctx)
	for took, slowest := int64(time.Since(begin)), atomic.LoadInt64(&l.slowest); took > slowest; {
		if atomic.CompareAndSwapInt64(&l.slowest, slowest, took) {
			break
		}
		slowest = atomic.LoadInt64(&l.slowest)
	}
	if lease.Leased {
		atomic.AddInt64(&l.pooled, 1)
	} else {
		atomic.AddInt64(&l.plain, 1)
	}
	time.Sleep(2 * time.Millisecond) // The function runs.
	return nil
}

// startFunction is a start as an engine does it: it takes the mode, or refuses.
func startFunction(_ context.Context, lease *nspool.Lease) error {
	if lease.NetworkMode != "bridge" && !strings.HasPrefix(lease.NetworkMode, "container:nspool-") {
		return fmt.Errorf("no engine starts a container with network mode %q", lease.NetworkMode)
	}
	return nil
}

// more waits until n more functions ran there.
func (l *load) more(what string, counter *int64, n int64) {
	l.t.Helper()
	target := atomic.LoadInt64(counter) + n
	waitFor(l.t, fmt.Sprintf("%d more %s starts", n, what), func() bool {
		return atomic.LoadInt64(counter) >= target || len(l.failures) > 0
	})
}

func (l *load) finish() {
	l.t.Helper()
	l.stop()
	l.joined.Wait()
	close(l.failures)
	for err := range l.failures {
		l.t.Errorf("a function start failed: %v", err)
	}
	l.t.Logf("%d in the pool, %d on the bridge, slowest start %v", l.pooled, l.plain, time.Duration(l.slowest))
	if l.slowest > int64(10*time.Second) {
		l.t.Errorf("a start took %v", time.Duration(l.slowest))
	}
}

func TestNoStartFailsWhenTheDaemonIsKilled(t *testing.T) {
	eachDaemon(t, func(t *testing.T, d *daemon) {
		client := newClient(t, d.endpoint, "load")
		if err := client.OnLost(func(nspool.LostLease) {}); err != nil {
			t.Fatal(err)
		}
		l := startLoad(t, client)
		for i := 0; i < kills; i++ {
			l.more("pooled", &l.pooled, 20)
			d.kill()
			l.more("plain", &l.plain, workers)
			d.start()
		}
		l.more("pooled", &l.pooled, 20)
		l.finish()
	})
}

func TestNoStartFailsWhenTheDaemonFreezes(t *testing.T) {
	eachDaemon(t, func(t *testing.T, d *daemon) {
		l := startLoad(t, newClient(t, d.endpoint, "load"))
		l.more("pooled", &l.pooled, 20)
		d.signal(syscall.SIGSTOP)
		l.more("plain", &l.plain, workers)
		d.signal(syscall.SIGCONT)
		l.more("pooled", &l.pooled, 20)
		l.finish()
	})
}
