package nspool

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"nspool.dev/clients/go/nspoolv1"
)

// imageTimeout is for a large image over a slow line.
const imageTimeout = 10 * time.Minute

// ImageRequest is what EnsureImage asks for beside the reference. Its zero value is a good one.
type ImageRequest struct {
	// With these, or with the token, the registry is asked by them; else by the daemon's own, and only if it has to be.
	Username, Password, IdentityToken string
	// Told how far the fetch is, ten times a second at most, on the caller's goroutine.
	Progress func(*nspoolv1.FetchProgress)
	// Bounds the wait. Zero: 10 minutes.
	Timeout time.Duration
}

// EnsureImage sees to it that an image is on the host, fetched if need be; a container is created from the Id of the answer.
// The error is an *Error. The fetch is the daemon's: when ctx or the timeout ends, the wait for it ends, and who asks again
// follows the same one, as this call does when its connection breaks.
func (c *Client) EnsureImage(ctx context.Context, reference string, request ImageRequest) (image *nspoolv1.EnsuredImage, err error) {
	message := &nspoolv1.EnsureImageRequest{Reference: reference}
	if request.Username != "" || request.Password != "" || request.IdentityToken != "" {
		message.Auth = &nspoolv1.RegistryAuth{
			Username: request.Username, Password: request.Password, IdentityToken: request.IdentityToken,
		}
	}
	within := limits{timeout: request.Timeout, retryFor: request.Timeout}
	if within.timeout == 0 {
		within = limits{timeout: imageTimeout, retryFor: imageTimeout}
	}
	err = c.connection.call(ctx, "ensure image", within, func(ctx context.Context) error {
		ctx, end := context.WithCancel(ctx)
		defer end()
		stream, err := c.connection.images.EnsureImage(ctx, message)
		for err == nil {
			var answer *nspoolv1.EnsureImageResponse
			if answer, err = stream.Recv(); err != nil {
				break
			}
			if image = answer.GetImage(); image != nil {
				return nil
			}
			if progress := answer.GetProgress(); progress != nil && request.Progress != nil {
				request.Progress(progress)
			}
		}
		if err == io.EOF {
			return status.Error(codes.DataLoss, "the answer ended without an outcome")
		}
		return err
	})
	return image, err
}
