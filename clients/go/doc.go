// Package nspool is the client of nspool: network namespaces that are ready before a function starts, or the plain
// network.
//
// Allocate gives an error when it gets no lease. AllocateOrFallback, RunWith and With do not, but for a mistake of the
// caller (InvalidArgument, PermissionDenied): they go to the plain network, so that no function start fails because the
// daemon is slow, restarting, empty or gone.
//
// client.go is where to begin: Client. lease.go is what a start gets, image.go the function's image. start.go holds the
// second try on the plain network, watch.go and keepalive.go what runs in the background, calls.go the connection,
// errors.go what can go wrong. Package nspoolv1 is the generated code of the whole contract.
//
// It deliberately does not know engines or containers, and uses only what old (1.33) and new grpc-go share.
package nspool
