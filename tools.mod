// Tools that generate code, kept out of go.mod so that building and importing
// Flotilla never needs them. Used by "make generate" through -modfile=tools.mod.
// "go mod tidy" is not for this file: it would add what Flotilla itself needs.
module github.com/flotilla-kv/flotilla

go 1.26.0

tool (
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)

require (
	github.com/bufbuild/protocompile v0.14.1
	google.golang.org/grpc/cmd/protoc-gen-go-grpc v1.6.2
	google.golang.org/protobuf v1.36.12
)
