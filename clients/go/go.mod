module nspool.dev/clients/go

go 1.15

require (
	github.com/golang/protobuf v1.4.1
	google.golang.org/grpc v1.33.3
)
