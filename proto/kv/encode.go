package kv

import "encoding/binary"

func (r *Request) present() uint64 {
	return when(len(r.Key) > 0, reqKey) |
		when(r.Range != 0 || r.Generation != 0, reqRoute) |
		when(r.Identity != Identity{}, reqIdentity) |
		when(len(r.Value) > 0, reqValue) |
		when(r.Timestamp != 0, reqTimestamp) |
		when(r.Flags != 0, reqFlags) |
		when(r.Limit != 0, reqLimit) |
		when(len(r.End) > 0, reqEnd) |
		when(r.Expect != 0, reqExpect) |
		when(len(r.Expected) > 0, reqExpected) |
		when(r.ExpectedVersion != 0, reqExpectedVersion) |
		when(len(r.Ops) > 0, reqOps)
}

func (r *Request) bodySize() int {
	p := r.present()
	n := 1 + uvarintLen(p) + uvarintLen(r.ID)
	if p&reqKey != 0 {
		n += bytesLen(r.Key)
	}
	if p&reqRoute != 0 {
		n += uvarintLen(uint64(r.Range)) + uvarintLen(uint64(r.Generation))
	}
	if p&reqIdentity != 0 {
		n += 16 + uvarintLen(r.Identity.Sequence) + uvarintLen(uint64(r.Identity.Operation))
	}
	if p&reqValue != 0 {
		n += bytesLen(r.Value)
	}
	if p&reqTimestamp != 0 {
		n += 8
	}
	if p&reqFlags != 0 {
		n++
	}
	if p&reqLimit != 0 {
		n += uvarintLen(uint64(r.Limit))
	}
	if p < reqEnd { // the common case ends here
		return n
	}
	if p&reqEnd != 0 {
		n += bytesLen(r.End)
	}
	if p&reqExpect != 0 {
		n++
	}
	if p&reqExpected != 0 {
		n += bytesLen(r.Expected)
	}
	if p&reqExpectedVersion != 0 {
		n += 8
	}
	if p&reqOps != 0 {
		n += uvarintLen(uint64(len(r.Ops)))
		for i := range r.Ops {
			n += r.Ops[i].size()
		}
	}
	return n
}

// AppendRequest appends one request of a frame.
func AppendRequest(dst []byte, r *Request) []byte {
	p := r.present()
	dst = binary.AppendUvarint(dst, uint64(r.bodySize()))
	dst = append(dst, byte(r.Verb))
	dst = binary.AppendUvarint(dst, p)
	dst = binary.AppendUvarint(dst, r.ID)
	if p&reqKey != 0 {
		dst = appendBytes(dst, r.Key)
	}
	if p&reqRoute != 0 {
		dst = binary.AppendUvarint(dst, uint64(r.Range))
		dst = binary.AppendUvarint(dst, uint64(r.Generation))
	}
	if p&reqIdentity != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, r.Identity.Client)
		dst = binary.AppendUvarint(dst, r.Identity.Sequence)
		dst = binary.AppendUvarint(dst, uint64(r.Identity.Operation))
		dst = appendFixed(dst, r.Identity.Floor)
	}
	if p&reqValue != 0 {
		dst = appendBytes(dst, r.Value)
	}
	if p&reqTimestamp != 0 {
		dst = appendFixed(dst, r.Timestamp)
	}
	if p&reqFlags != 0 {
		dst = append(dst, r.Flags)
	}
	if p&reqLimit != 0 {
		dst = binary.AppendUvarint(dst, uint64(r.Limit))
	}
	if p < reqEnd {
		return dst
	}
	return r.appendRare(dst, p)
}

// appendRare appends the fields that gets and puts do not have.
func (r *Request) appendRare(dst []byte, p uint64) []byte {
	if p&reqEnd != 0 {
		dst = appendBytes(dst, r.End)
	}
	if p&reqExpect != 0 {
		dst = append(dst, byte(r.Expect))
	}
	if p&reqExpected != 0 {
		dst = appendBytes(dst, r.Expected)
	}
	if p&reqExpectedVersion != 0 {
		dst = appendFixed(dst, r.ExpectedVersion)
	}
	if p&reqOps != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Ops)))
		for i := range r.Ops {
			dst = r.Ops[i].appendTo(dst)
		}
	}
	return dst
}

func (o *Op) present() uint64 {
	return when(len(o.Key) > 0, opKey) |
		when(len(o.Value) > 0, opValue) |
		when(len(o.Expected) > 0, opExpected) |
		when(o.ExpectedVersion != 0, opExpectedVersion) |
		when(o.Expect != 0, opExpect) |
		when(o.Delete, opDelete)
}

func (o *Op) size() int {
	p := o.present()
	n := 1
	if p&opKey != 0 {
		n += bytesLen(o.Key)
	}
	if p&opValue != 0 {
		n += bytesLen(o.Value)
	}
	if p&opExpected != 0 {
		n += bytesLen(o.Expected)
	}
	if p&opExpectedVersion != 0 {
		n += 8
	}
	if p&opExpect != 0 {
		n++
	}
	return n
}

func (o *Op) appendTo(dst []byte) []byte {
	p := o.present()
	dst = append(dst, byte(p))
	if p&opKey != 0 {
		dst = appendBytes(dst, o.Key)
	}
	if p&opValue != 0 {
		dst = appendBytes(dst, o.Value)
	}
	if p&opExpected != 0 {
		dst = appendBytes(dst, o.Expected)
	}
	if p&opExpectedVersion != 0 {
		dst = appendFixed(dst, o.ExpectedVersion)
	}
	if p&opExpect != 0 {
		dst = append(dst, byte(o.Expect))
	}
	return dst
}

func (r *Response) present() uint64 {
	return when(r.Timestamp != 0, respTimestamp) |
		when(len(r.Value) > 0, respValue) |
		when(r.Found, respFound) |
		when(r.More, respMore) |
		when(len(r.Rows) > 0, respRows) |
		when(len(r.ResumeKey) > 0, respResumeKey) |
		when(r.Leader != 0, respLeader) |
		when(r.MaybeApplied, respMaybeApplied) |
		when(r.RetryAfterMillis != 0, respRetryAfter) |
		when(r.Count != 0, respCount) |
		when(len(r.Descriptors) > 0, respDescriptors) |
		when(len(r.Message) > 0, respMessage)
}

func (r *Response) bodySize() int {
	p := r.present()
	n := 1 + uvarintLen(p) + uvarintLen(r.ID)
	if p&respTimestamp != 0 {
		n += 8
	}
	if p&respValue != 0 {
		n += bytesLen(r.Value)
	}
	if p < respRows { // the common case ends here
		return n
	}
	if p&respRows != 0 {
		n += uvarintLen(uint64(len(r.Rows)))
		for i := range r.Rows {
			n += bytesLen(r.Rows[i].Key) + bytesLen(r.Rows[i].Value) + 8
		}
	}
	if p&respResumeKey != 0 {
		n += bytesLen(r.ResumeKey)
	}
	if p&respLeader != 0 {
		n += uvarintLen(uint64(r.Leader))
	}
	if p&respRetryAfter != 0 {
		n += uvarintLen(uint64(r.RetryAfterMillis))
	}
	if p&respCount != 0 {
		n += uvarintLen(uint64(r.Count))
	}
	if p&respDescriptors != 0 {
		n += uvarintLen(uint64(len(r.Descriptors)))
		for _, d := range r.Descriptors {
			n += bytesLen(d)
		}
	}
	if p&respMessage != 0 {
		n += uvarintLen(uint64(len(r.Message))) + len(r.Message)
	}
	return n
}

// AppendResponse appends one response of a frame.
func AppendResponse(dst []byte, r *Response) []byte {
	p := r.present()
	dst = binary.AppendUvarint(dst, uint64(r.bodySize()))
	dst = append(dst, byte(r.Code))
	dst = binary.AppendUvarint(dst, p)
	dst = binary.AppendUvarint(dst, r.ID)
	if p&respTimestamp != 0 {
		dst = appendFixed(dst, r.Timestamp)
	}
	if p&respValue != 0 {
		dst = appendBytes(dst, r.Value)
	}
	if p < respRows {
		return dst
	}
	return r.appendRare(dst, p)
}

// appendRare appends the fields that a successful get or put does not have.
func (r *Response) appendRare(dst []byte, p uint64) []byte {
	if p&respRows != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Rows)))
		for i := range r.Rows {
			row := &r.Rows[i]
			dst = appendBytes(dst, row.Key)
			dst = appendBytes(dst, row.Value)
			dst = appendFixed(dst, row.Version)
		}
	}
	if p&respResumeKey != 0 {
		dst = appendBytes(dst, r.ResumeKey)
	}
	if p&respLeader != 0 {
		dst = binary.AppendUvarint(dst, uint64(r.Leader))
	}
	if p&respRetryAfter != 0 {
		dst = binary.AppendUvarint(dst, uint64(r.RetryAfterMillis))
	}
	if p&respCount != 0 {
		dst = binary.AppendUvarint(dst, uint64(r.Count))
	}
	if p&respDescriptors != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Descriptors)))
		for _, d := range r.Descriptors {
			dst = appendBytes(dst, d)
		}
	}
	if p&respMessage != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Message)))
		dst = append(dst, r.Message...)
	}
	return dst
}
