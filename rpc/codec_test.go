package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/support"
)

func stampOf(ts hlc.Timestamp) func() hlc.Timestamp {
	return func() hlc.Timestamp { return ts }
}

func TestMessagesSurviveTheWireFieldByField(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		var want []multiraft.Message
		for range rng.IntN(6) {
			want = append(want, randomMessage(rng))
		}
		frame, taken, dropped := messagesFrame(nil, 3, want, stampOf(77))
		if taken != len(want) || dropped != 0 {
			t.Fatalf("took %d of %d, dropped %d", taken, len(want), dropped)
		}
		env, err := openFrame(frame)
		if err != nil {
			t.Fatal(err)
		}
		if env.from != 3 || env.stamp != 77 || env.kind != kindMessages {
			t.Fatalf("envelope %+v", env)
		}
		got, err := decodeMessages(env.payload)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, want)
	}
}

func compare(t *testing.T, got, want []multiraft.Message) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d messages, want %d", len(got), len(want))
	}
	for i := range want {
		g, w := got[i], want[i]
		if !proto.Equal(g.Raft, w.Raft) {
			t.Fatalf("message %d: got %v, want %v", i, g.Raft, w.Raft)
		}
		g.Raft, w.Raft = nil, nil
		if g != w {
			t.Fatalf("message %d: got %+v, want %+v", i, g, w)
		}
	}
}

func TestFrameEndsAtItsLimitsAndOneLargeMessageTravelsAlone(t *testing.T) {
	t.Parallel()
	large := multiraft.Message{Range: 1, Raft: &raftpb.Message{
		Entries: []*raftpb.Entry{{Data: make([]byte, 2*targetFrameBytes)}},
	}}
	small := multiraft.Message{Range: 2}
	msgs := []multiraft.Message{small, large, small}
	for _, want := range []int{1, 1, 1} {
		_, taken, _ := messagesFrame(nil, 1, msgs, stampOf(1))
		if taken != want {
			t.Fatalf("took %d messages, want %d of %d", taken, want, len(msgs))
		}
		msgs = msgs[taken:]
	}
	many := make([]multiraft.Message, maxFrameMessages+1)
	if _, taken, _ := messagesFrame(nil, 1, many, stampOf(1)); taken != maxFrameMessages {
		t.Fatalf("took %d messages, want %d", taken, maxFrameMessages)
	}
	entries := make([]*raftpb.Entry, maxFrameEntries/2+1)
	for i := range entries {
		entries[i] = &raftpb.Entry{}
	}
	m := multiraft.Message{Range: 1, Raft: &raftpb.Message{Entries: entries}}
	if _, taken, _ := messagesFrame(nil, 1, []multiraft.Message{m, m}, stampOf(1)); taken != 1 {
		t.Fatalf("took %d messages with more entries than a frame may hold", taken)
	}
}

func TestResponsesOfStorageThreadsNeverTravel(t *testing.T) {
	t.Parallel()
	m := multiraft.Message{Range: 1, Raft: &raftpb.Message{
		Type: raftpb.MsgStorageAppend.Enum(), Responses: []*raftpb.Message{{}},
	}}
	frame, taken, dropped := messagesFrame(nil, 1, []multiraft.Message{m, {Range: 2}}, stampOf(1))
	if taken != 2 || dropped != 1 {
		t.Fatalf("took %d, dropped %d", taken, dropped)
	}
	env, err := openFrame(frame)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMessages(env.payload)
	if err != nil || len(got) != 1 || got[0].Range != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	frame, _, _ := messagesFrame(nil, 1, []multiraft.Message{randomMessage(rng)}, stampOf(5))
	for i := range frame {
		damaged := bytes.Clone(frame)
		damaged[i] ^= 0x40
		if _, err := openFrame(damaged); err == nil {
			t.Fatalf("byte %d flipped and not noticed", i)
		}
	}
}

func TestDataOfLargeFramesDoesNotHoldTheFrame(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, aliasBelow} {
		m := multiraft.Message{Range: 1, Raft: &raftpb.Message{
			Entries: []*raftpb.Entry{{Data: bytes.Repeat([]byte{1}, size)}},
		}}
		frame, _, _ := messagesFrame(nil, 1, []multiraft.Message{m}, stampOf(5))
		env, _ := openFrame(frame)
		got, err := decodeMessages(env.payload)
		if err != nil {
			t.Fatal(err)
		}
		clear(frame)
		aliases := got[0].Raft.Entries[0].Data[0] == 0
		if want := size < aliasBelow; aliases != want {
			t.Fatalf("%d bytes of data: aliases the frame %v, want %v", size, aliases, want)
		}
	}
}

func TestAPartThatIsZeroCostsNothing(t *testing.T) {
	t.Parallel()
	size := func(m multiraft.Message) int {
		b, err := appendMessage(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	r := &raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum()}
	bare := size(multiraft.Message{Range: 1, Raft: r})
	acked := size(multiraft.Message{Range: 1, Raft: r, Epoch: 3<<32 | 4})
	if bare != 5 || acked != bare+2 {
		t.Fatalf("an answer takes %d bytes, with its epoch %d, want 5 and 7", bare, acked)
	}
}

func TestMalformedPartsAreRefused(t *testing.T) {
	t.Parallel()
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0x1f} // above 32 bits
	for name, body := range map[string][]byte{
		"an unknown part":              {1, 1 << 7},
		"an epoch without its count":   {1, partEpoch, 3},
		"a life above 32 bits":         append([]byte{1, partEpoch}, append(huge, 1)...),
		"a count above 32 bits":        append([]byte{1, partEpoch, 1}, huge...),
		"a departure without its term": {1, partLeft, 3},
		"a question without its term":  {1, partAsk},
		"a term of more bytes than 64 bits": append([]byte{1, partAsk},
			bytes.Repeat([]byte{0xff}, 11)...),
	} {
		payload := append([]byte{1, 0, 0, 0}, body...)
		if _, err := decodeMessages(payload); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		msgs := []multiraft.Message{randomMessage(rng), randomMessage(rng)}
		frame, _, _ := messagesFrame(nil, 1, msgs, stampOf(5))
		env, _ := openFrame(frame)
		f.Add(env.payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		_, _ = openFrame(payload)
		msgs, err := decodeMessages(payload)
		if err != nil {
			return
		}
		// What decodes must encode to something that decodes to the same.
		frame, taken, dropped := messagesFrame(nil, 1, msgs, stampOf(5))
		if taken != len(msgs) || dropped != 0 {
			t.Skip("more than one frame")
		}
		env, err := openFrame(frame)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeMessages(env.payload)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, again, msgs)
	})
}

func randomMessage(rng *rand.Rand) multiraft.Message {
	m := multiraft.Message{Range: ids.RangeID(rng.Uint64() >> rng.IntN(64)), ToLearner: rng.IntN(2) == 0}
	if rng.IntN(3) == 0 {
		m.Truncate = 12
	}
	if rng.IntN(5) == 0 {
		m.Gone = 9
		return m
	}
	if rng.IntN(5) == 0 {
		m.Left = multiraft.Departure{
			Replica: ids.ReplicaID(rng.Uint64() >> rng.IntN(64)),
			Term:    ids.Term(rng.Uint64() >> rng.IntN(64)),
		}
		return m
	}
	if rng.IntN(3) == 0 {
		m.Epoch = support.Epoch(rng.Uint64() >> rng.IntN(64))
	}
	if rng.IntN(3) == 0 {
		m.Ask = ids.Term(rng.Uint64() >> rng.IntN(64))
	}
	r := &raftpb.Message{}
	m.Raft = r
	if rng.IntN(8) > 0 {
		r.Type = raftpb.MessageType(rng.IntN(20)).Enum()
	}
	for _, p := range []**uint64{
		&r.To, &r.From, &r.Term, &r.LogTerm, &r.Index, &r.Commit, &r.Vote, &r.RejectHint,
	} {
		if rng.IntN(3) > 0 {
			*p = new(rng.Uint64() >> rng.IntN(64))
		}
	}
	if rng.IntN(3) == 0 {
		r.Reject = new(rng.IntN(2) == 0)
	}
	if rng.IntN(4) == 0 {
		r.Context = randomBytes(rng, 20)
	}
	if rng.IntN(6) == 0 {
		r.Snapshot = &raftpb.Snapshot{Data: randomBytes(rng, 9)}
		r.Snapshot.Metadata = &raftpb.SnapshotMetadata{
			Index: new(uint64(4)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}},
		}
	}
	for i := range rng.IntN(5) {
		r.Entries = append(r.Entries, randomEntry(rng, r, uint64(i)))
	}
	return m
}

func randomEntry(rng *rand.Rand, r *raftpb.Message, i uint64) *raftpb.Entry {
	e := &raftpb.Entry{}
	if rng.IntN(5) > 0 {
		e.Index = new(r.GetIndex() + 1 + i)
		e.Term = new(r.GetLogTerm())
	}
	if rng.IntN(5) == 0 {
		e.Term = new(rng.Uint64())
	}
	if rng.IntN(3) > 0 {
		e.Type = raftpb.EntryType(rng.IntN(3)).Enum()
	}
	if rng.IntN(4) > 0 {
		e.Data = randomBytes(rng, 300)
	}
	return e
}

func randomBytes(rng *rand.Rand, limit int) []byte {
	b := make([]byte, rng.IntN(limit))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func benchmarkMessage(entries, size int) *raftpb.Message {
	m := &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), To: new(uint64(2)), From: new(uint64(1)),
		Term: new(uint64(9)), LogTerm: new(uint64(9)), Index: new(uint64(100_000)),
		Commit: new(uint64(99_999)),
	}
	for i := range entries {
		m.Entries = append(m.Entries, &raftpb.Entry{
			Type: raftpb.EntryNormal.Enum(), Term: new(uint64(9)),
			Index: new(uint64(100_001 + i)), Data: make([]byte, size),
		})
	}
	return m
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct{ entries, size int }{{0, 0}, {1, 160}, {16, 256}} {
		m := benchmarkMessage(c.entries, c.size)
		b.Run(fmt.Sprintf("boxed/%dx%d", c.entries, c.size), func(b *testing.B) {
			msgs := []multiraft.Message{{Range: 7, Raft: m}}
			frame, _, _ := messagesFrame(nil, 1, msgs, stampOf(1))
			b.ReportAllocs()
			for b.Loop() {
				env, err := openFrame(frame)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := decodeMessages(env.payload); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("proto/%dx%d", c.entries, c.size), func(b *testing.B) {
			data, _ := proto.Marshal(m)
			b.ReportAllocs()
			for b.Loop() {
				if err := proto.Unmarshal(data, &raftpb.Message{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	m := benchmarkMessage(16, 256)
	b.Run("boxed", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		msgs := []multiraft.Message{{Range: 7, Raft: m}}
		for b.Loop() {
			buf, _, _ = messagesFrame(buf[:0], 1, msgs, stampOf(1))
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf, _ = proto.MarshalOptions{}.MarshalAppend(buf[:0], m)
		}
	})
}
