package nspool_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nspool "nspool.dev/clients/go"
	"nspool.dev/clients/go/nspoolv1"
)

func TestAnImageIsFollowedToItsEnd(t *testing.T) {
	client, pool, _ := start(t)
	var told []uint32
	hear := func(progress *nspoolv1.FetchProgress) { told = append(told, progress.LayersDone, progress.Layers) }
	image, err := client.EnsureImage(context.Background(), "reg:5000/team/fn:1", nspool.ImageRequest{Progress: hear})
	if err != nil || image.Id != "sha256:1" || !image.Fetched || image.Reference != "reg:5000/team/fn:1" {
		t.Fatalf("%v, %v", image, err)
	}
	if len(told) != 2 || told[0] != 1 || told[1] != 2 {
		t.Errorf("told %v", told)
	}
	if pool.images[0].Auth != nil {
		t.Error("the daemon's own credentials are not the caller's")
	}
	request := nspool.ImageRequest{Username: "me", Password: "secret"}
	if _, err := client.EnsureImage(context.Background(), "a", request); err != nil {
		t.Fatal(err)
	}
	if auth := pool.images[1].Auth; auth.GetUsername() != "me" || auth.GetPassword() != "secret" || auth.GetIdentityToken() != "" {
		t.Errorf("asked by %v", auth)
	}
}

func TestABrokenConnectionFollowsTheSameFetch(t *testing.T) {
	client, pool, _ := start(t)
	pool.will("EnsureImage", func(func() error) error { return status.Error(codes.Unavailable, "transport is closing") })
	image, err := client.EnsureImage(context.Background(), "a", nspool.ImageRequest{})
	if err != nil || image.Id != "sha256:1" || len(pool.images) != 2 {
		t.Fatalf("%v, %v after %d requests", image, err, len(pool.images))
	}
}

func TestAFetchThatComesToNothingIsTold(t *testing.T) {
	hangs := func(healthy func() error) error {
		time.Sleep(time.Second / 2)
		return healthy()
	}
	nothing := func(func() error) error { return nil }
	for _, c := range []struct {
		behave  behaviour
		timeout time.Duration
		says    string
	}{
		{refusing(codes.NotFound, "IMAGE_UNKNOWN", 0), 10 * time.Second, "IMAGE_UNKNOWN"},
		{nothing, 10 * time.Second, "without an outcome"},
		{hangs, 200 * time.Millisecond, "DeadlineExceeded"},
	} {
		client, pool, _ := start(t)
		pool.will("EnsureImage", c.behave)
		image, err := client.EnsureImage(context.Background(), "a", nspool.ImageRequest{Timeout: c.timeout})
		var failure *nspool.Error
		if image != nil || !errors.As(err, &failure) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", c.says, image, err)
		}
	}
}
