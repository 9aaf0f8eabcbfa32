package rpc

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/flotilla-kv/flotilla/proto/framecodec"
)

// Limits of every connection. grpc's own defaults leave the first four open or
// so wide that one caller can exhaust a node.
const (
	// MaxConcurrentStreams is per connection, for servers.
	MaxConcurrentStreams = 1000
	// MaxMessageBytes is what one message may have, both ways: a client's frame
	// (32 MiB) or a raft message with the largest entry, and their headers.
	MaxMessageBytes = 40 << 20

	handshakeTimeout   = 10 * time.Second
	maxHeaderListBytes = 16 << 10
	connectTimeout     = 2 * time.Second

	// Setting one of the two windows switches grpc's adaptive window off and
	// leaves the other at 64 KB, so both are set.
	streamWindowBytes     = 4 << 20
	connectionWindowBytes = 16 << 20
	socketBufferBytes     = 128 << 10

	// grpc-go raises a client's interval to 10 s if it is lower. The timeout is
	// also the TCP user timeout: with data unacknowledged for so long the
	// connection ends. Streams between nodes notice sooner, see silenceLimit.
	clientPingEvery   = 10 * time.Second
	clientPingTimeout = 4 * time.Second
	serverPingEvery   = 10 * time.Second
	serverPingTimeout = 5 * time.Second
	// minClientPing is the most often that a client may ping before the server
	// sends it away with too_many_pings.
	minClientPing = 5 * time.Second

	reconnectMin = 10 * time.Millisecond
	reconnectMax = time.Second
)

// NewServer returns a gRPC server with every limit set that grpc leaves open.
// It passes raw frames and protobuf (see framecodec). Nothing is served before
// its Serve. Idle connections are not closed: batch streams and raft streams
// may be quiet for hours.
func NewServer(opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(framecodec.Codec{}),
		grpc.MaxConcurrentStreams(MaxConcurrentStreams),
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxHeaderListSize(maxHeaderListBytes),
		grpc.InitialWindowSize(streamWindowBytes),
		grpc.InitialConnWindowSize(connectionWindowBytes),
		grpc.ReadBufferSize(socketBufferBytes),
		grpc.WriteBufferSize(socketBufferBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: serverPingEvery, Timeout: serverPingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: minClientPing, PermitWithoutStream: true,
		}),
	}, opts...)...)
}

// Dial returns a connection with the settings that match NewServer. It connects
// when first used. Proxies from the environment are not used, and the address
// is resolved anew at every attempt. The caller closes it.
func Dial(addr string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(framecodec.Codec{}),
			grpc.MaxCallRecvMsgSize(MaxMessageBytes),
			grpc.MaxCallSendMsgSize(MaxMessageBytes),
		),
		grpc.WithInitialWindowSize(streamWindowBytes),
		grpc.WithInitialConnWindowSize(connectionWindowBytes),
		grpc.WithReadBufferSize(socketBufferBytes),
		grpc.WithWriteBufferSize(socketBufferBytes),
		grpc.WithMaxHeaderListSize(maxHeaderListBytes),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: clientPingEvery, Timeout: clientPingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: reconnectMin, Multiplier: 2, Jitter: 0.3, MaxDelay: reconnectMax,
			},
			MinConnectTimeout: connectTimeout,
		}),
	}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return conn, nil
}
