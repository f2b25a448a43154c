package nspool

import (
	"fmt"
	"time"

	"github.com/golang/protobuf/proto"
	"github.com/golang/protobuf/ptypes/duration"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error says what was tried, on what, and what came back. Find it with errors.As.
type Error struct {
	// What was tried, as "allocate".
	What     string
	Endpoint string
	Code     codes.Code
	// The daemon's word for it, as "POOL_EMPTY". Empty when the answer is not the daemon's own.
	Reason  string
	Message string
	// When the daemon expects a new try to succeed; zero when it made no estimate.
	RetryAfter time.Duration

	cause error
}

func (e *Error) Error() string {
	word := e.Reason
	if word == "" {
		word = e.Code.String()
	}
	text := fmt.Sprintf("%s at %s: %s: %s", e.What, e.Endpoint, word, e.Message)
	if e.RetryAfter > 0 {
		text += fmt.Sprintf("; try again in %v", e.RetryAfter)
	}
	if e.Reason == "" && e.Code == codes.Unavailable {
		text += "; is the daemon running, and may this user open its socket?"
	}
	return text
}

// Unwrap gives the error of grpc.
func (e *Error) Unwrap() error { return e.cause }

// Mistake says that the caller asked for something wrong, or may not ask: a new try, or the plain network, would only hide
// it.
func (e *Error) Mistake() bool {
	return e.Code == codes.InvalidArgument || e.Code == codes.PermissionDenied
}

// connectionLost says that no answer came because there is no connection, or it broke: the same message may be sent
// again. What the daemon answers itself carries a reason.
func (e *Error) connectionLost() bool {
	if e.Reason != "" {
		return false
	}
	switch e.Code {
	case codes.Unavailable, codes.Unknown, codes.Internal, codes.Canceled:
		return true
	}
	return false
}

func errorFrom(err error, what, endpoint string) *Error {
	st := status.Convert(err)
	e := &Error{What: what, Endpoint: endpoint, Code: st.Code(), Message: st.Message(), cause: err}
	for _, detail := range st.Proto().GetDetails() {
		switch detail.GetTypeUrl() {
		case "type.googleapis.com/google.rpc.ErrorInfo":
			info := &errorInfo{}
			if proto.Unmarshal(detail.GetValue(), info) == nil && info.Domain == "nspool" {
				e.Reason = info.Reason
			}
		case "type.googleapis.com/google.rpc.RetryInfo":
			info := &retryInfo{}
			if proto.Unmarshal(detail.GetValue(), info) == nil {
				e.RetryAfter = fromProto(info.RetryDelay)
			}
		}
	}
	return e
}

// errorInfo and retryInfo are the two messages of google.rpc that the daemon adds to its refusals. They are written out
// here, and not taken from google.golang.org/genproto, because that module was split: a program that has both its old
// and its new shape in its module graph does not build.
type errorInfo struct {
	Reason string `protobuf:"bytes,1,opt,name=reason,proto3"`
	Domain string `protobuf:"bytes,2,opt,name=domain,proto3"`
}

func (m *errorInfo) Reset()         { *m = errorInfo{} }
func (m *errorInfo) String() string { return m.Domain + "/" + m.Reason }
func (*errorInfo) ProtoMessage()    {}

// XXX_MessageName is the name in type URLs.
func (*errorInfo) XXX_MessageName() string { return "google.rpc.ErrorInfo" }

type retryInfo struct {
	RetryDelay *duration.Duration `protobuf:"bytes,1,opt,name=retry_delay,json=retryDelay,proto3"`
}

func (m *retryInfo) Reset()         { *m = retryInfo{} }
func (m *retryInfo) String() string { return fromProto(m.RetryDelay).String() }
func (*retryInfo) ProtoMessage()    {}

// XXX_MessageName is the name in type URLs.
func (*retryInfo) XXX_MessageName() string { return "google.rpc.RetryInfo" }

// toProto leaves zero out: in this contract an absent duration means the default.
func toProto(d time.Duration) *duration.Duration {
	if d == 0 {
		return nil
	}
	return &duration.Duration{Seconds: int64(d / time.Second), Nanos: int32(d % time.Second)}
}

func fromProto(d *duration.Duration) time.Duration {
	return time.Duration(d.GetSeconds())*time.Second + time.Duration(d.GetNanos())
}
