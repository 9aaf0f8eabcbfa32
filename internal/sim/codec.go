package sim

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Requests and responses travel as the bytes of the batch stream.

func encodeRequest(r *kv.Request) []byte {
	return kv.AppendRequests(nil, 0, []kv.Request{*r})
}

func decodeRequest(data []byte) (*kv.Request, error) {
	var f kv.Frame
	if err := kv.DecodeFrame(data, &f); err != nil {
		return nil, err
	}
	if len(f.Requests) != 1 {
		return nil, fmt.Errorf("frame has %d requests", len(f.Requests))
	}
	return &f.Requests[0], nil
}

func encodeResponse(r *kv.Response, stamp hlc.Timestamp) []byte {
	return kv.AppendResponses(nil, stamp, []kv.Response{*r})
}

func decodeResponse(data []byte) (*kv.Response, hlc.Timestamp, error) {
	var f kv.Frame
	if err := kv.DecodeFrame(data, &f); err != nil {
		return nil, 0, err
	}
	if len(f.Responses) != 1 {
		return nil, 0, fmt.Errorf("frame has %d responses", len(f.Responses))
	}
	return &f.Responses[0], f.Stamp, nil
}
