package nspool

import (
	"time"

	"github.com/golang/protobuf/proto"
)

// RefusalDetails are what the daemon adds to a refusal; for the fake daemon.
func RefusalDetails(reason string, retryAfter time.Duration) []proto.Message {
	details := []proto.Message{&errorInfo{Reason: reason, Domain: "nspool"}}
	if retryAfter > 0 {
		details = append(details, &retryInfo{RetryDelay: toProto(retryAfter)})
	}
	return details
}

// Held is how many leases the client remembers.
func (c *Client) Held() int { return len(c.holds()) }
