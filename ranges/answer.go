package ranges

import (
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// The refusals. Each says whether the attempt may still apply.

func invalid(message string) *kv.Response {
	return &kv.Response{Code: kv.CodeInvalid, Message: message}
}

func tooLarge(message string) *kv.Response {
	return &kv.Response{Code: kv.CodeTooLarge, Message: message}
}

func unavailable(message string) *kv.Response {
	return &kv.Response{
		Code: kv.CodeUnavailable, RetryAfterMillis: retryMillis, Message: message,
	}
}

func overloaded() *kv.Response {
	return &kv.Response{Code: kv.CodeOverloaded, RetryAfterMillis: retrySoonMillis}
}

func internalError(err error) *kv.Response {
	return &kv.Response{Code: kv.CodeInternal, Message: err.Error()}
}

func belowThreshold() *kv.Response {
	return &kv.Response{
		Code:    kv.CodeBelowThreshold,
		Message: "timestamp is at or below the garbage collection threshold",
	}
}

// notLeader says who may lead. maybe: the attempt may still apply.
func (r *Replica) notLeader(maybe bool) *kv.Response {
	s := r.state.Load()
	if s.into != 0 {
		// The range that took it in is here, and in the answer.
		resp := r.table.wrongRange(s.desc.GetStart(), s.desc.GetEnd())
		resp.MaybeApplied = maybe
		return resp
	}
	resp := &kv.Response{Code: kv.CodeNotLeader, MaybeApplied: maybe}
	if s.destroyed || s.lead.mine {
		// Leads but is not ready, or is frozen: the same node, a moment later.
		// Destroyed: unknown.
		resp.RetryAfterMillis = retrySoonMillis
	}
	if !s.destroyed {
		resp.Leader = s.leaderNode()
	}
	if s.lead.heir != 0 {
		resp.RetryAfterMillis = retryMovingMillis
	}
	return resp
}

// enqueueError translates a refusal of the shard's inbox: nothing was begun.
func (r *Replica) enqueueError(err error) *kv.Response {
	if errors.Is(err, multiraft.ErrStopped) {
		return r.notLeader(false)
	}
	return overloaded()
}

// readError translates a failed confirmation.
func (r *Replica) readError(err error) *kv.Response {
	if errors.Is(err, multiraft.ErrOverloaded) {
		return overloaded()
	}
	return r.notLeader(false)
}

// clockError translates a timestamp that the clock does not adopt, or none to issue.
func clockError(err error) *kv.Response {
	if errors.Is(err, hlc.ErrTooFarAhead) {
		return unavailable("timestamp of the request is too far ahead of this node's clock")
	}
	return unavailable(err.Error())
}

// wrongRange names the local ranges that overlap [start, end); end empty: the key.
func (t *Table) wrongRange(start, end []byte) *kv.Response {
	resp := &kv.Response{Code: kv.CodeWrongRange}
	for _, d := range t.overlapping(start, end) {
		if data, err := proto.Marshal(d); err == nil {
			resp.Descriptors = append(resp.Descriptors, data)
		}
	}
	return resp
}

// overlapping returns the descriptors of initialised local replicas that
// overlap [start, end), in key order, at most maxDescriptors.
func (t *Table) overlapping(start, end []byte) []*metapb.RangeDescriptor {
	if len(end) == 0 {
		end = append(append([]byte{}, start...), 0)
	}
	const maxDescriptors = 16
	var found []*metapb.RangeDescriptor
	t.mu.RLock()
	defer t.mu.RUnlock()
	t.mu.spans.visit(start, end, func(r *Replica) bool {
		found = append(found, r.descriptor())
		return len(found) < maxDescriptors
	})
	return found
}
