package session

import (
	"hash/crc32"
	"sync"
	"sync/atomic"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	headroom   = 48       // bytes before a chunk's payload, for the frame heads that travel with it: 11 + 9 + 9 + 2 + 1 + 4
	smallChunk = 4 << 10  // bytes; what a shell's line needs
	largeChunk = 64 << 10 // bytes; one DATA frame
)

// chunk holds sent bytes until they are acknowledged, with room for a frame head in front, so that a frame is one
// Write and no copy.
type chunk struct {
	next  *chunk
	start uint64 // offset of the first byte
	crc   uint32 // CRC-32C of all bytes before start
	n     int    // bytes held
	pins  int    // writers at work on buf
	acked bool   // to be given back with the last pin
	buf   []byte // headroom, then payload
}

func (c *chunk) end() uint64   { return c.start + uint64(c.n) }
func (c *chunk) room() int     { return len(c.buf) - headroom - c.n }
func (c *chunk) bytes() []byte { return c.buf[headroom : headroom+c.n] }

// ring is a lane's replay store: the bytes from the last acknowledged one to the last written one.
// It is a list of chunks from a common memory, so that it grows with what is on its way and is nothing when idle.
// The lane's lock guards it.
type ring struct {
	mem         *memory
	all         *int64 // memory of all the link's rings; under mem's lock
	first, last *chunk
	hint        *chunk // in the ring: where at found the last offset
	held        int64  // bytes of memory
	acked       uint64 // everything before is gone
	end         uint64 // offset of the next byte written
	crc         uint32 // CRC-32C of all bytes before end
}

// room is memory for n bytes, of which add counts those that were put there; nil: memory is short. must takes them even so.
// They are in one chunk, so that a message is never torn in two frames.
func (r *ring) room(n int, must bool) []byte {
	c := r.last
	if c == nil || c.room() < n {
		if c = r.grow(n, must); c == nil {
			return nil
		}
	}
	return c.buf[headroom+c.n:][:n]
}

// add counts n bytes that are behind the last ones now.
func (r *ring) add(n int) {
	c := r.last
	r.crc = crc32.Update(r.crc, castagnoli, c.buf[headroom+c.n:][:n])
	c.n += n
	r.end += uint64(n)
}

func (r *ring) grow(want int, must bool) *chunk {
	size := smallChunk
	if want > smallChunk-headroom || r.first != nil {
		size = largeChunk + headroom
	}
	if !r.mem.reserve(r.all, int64(size), must || r.held < minRing) {
		return nil
	}
	c := r.mem.get(size)
	c.start, c.crc = r.end, r.crc
	r.held += int64(size)
	if r.last == nil {
		r.first = c
	} else {
		r.last.next = c
	}
	r.last = c
	return c
}

// ack forgets the bytes before v, which the caller has checked to be in [acked, end].
func (r *ring) ack(v uint64) {
	r.acked = v
	for c := r.first; c != nil && c.end() <= v; c = r.first {
		r.first = c.next
		if r.first == nil {
			r.last = nil
		}
		r.drop(c)
	}
}

// clear forgets everything.
func (r *ring) clear() { r.ack(r.end) }

func (r *ring) drop(c *chunk) {
	if r.hint == c {
		r.hint = nil
	}
	r.held -= int64(len(c.buf))
	r.mem.release(r.all, int64(len(c.buf)))
	c.next, c.acked = nil, true
	if c.pins == 0 {
		r.mem.put(c)
	}
}

// unpin ends one writer's use of c.
func (r *ring) unpin(c *chunk) {
	if c.pins--; c.pins == 0 && c.acked {
		r.mem.put(c)
	}
}

// at finds the chunk that holds offset.
func (r *ring) at(offset uint64) *chunk {
	c := r.first
	if r.hint != nil && r.hint.start <= offset {
		c = r.hint
	}
	for c.end() <= offset {
		c = c.next
	}
	r.hint = c
	return c
}

// crcAt is the CRC-32C of all bytes before offset, which must be in [acked, end].
func (r *ring) crcAt(offset uint64) uint32 {
	if offset == r.end {
		return r.crc
	}
	c := r.at(offset)
	return crc32.Update(c.crc, castagnoli, c.bytes()[:offset-c.start])
}

// memory is what all rings of an endpoint draw from.
type memory struct {
	budget int64 // bytes

	mu      sync.Mutex
	used    int64 // by rings
	windows int64 // promised to peers beyond each stream's first window

	unread atomic.Int64 // held by sessions whose applications have not read it yet

	small, large sync.Pool
	segments
}

// reserve takes n bytes of the budget for a link that holds so many. It may hold no more than it leaves free, so that one
// whose peer acknowledges nothing leaves others theirs; must takes them even so.
func (m *memory) reserve(held *int64, n int64, must bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !must && *held+n > m.budget-m.used-n {
		return false
	}
	m.used += n
	*held += n
	return true
}

func (m *memory) release(held *int64, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= n
	*held -= n
}

// reserveWindow promises a peer n bytes of receive window, or takes a promise back.
func (m *memory) reserveWindow(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 && m.windows+n > m.budget {
		return false
	}
	m.windows += n
	return true
}

// over says whether less is left than a lane has in any case.
func (m *memory) over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.budget-m.used < minRing
}

func (m *memory) pool(size int) *sync.Pool {
	if size == smallChunk {
		return &m.small
	}
	return &m.large
}

func (m *memory) get(size int) *chunk {
	if c, ok := m.pool(size).Get().(*chunk); ok {
		*c = chunk{buf: c.buf}
		return c
	}
	return &chunk{buf: make([]byte, size)}
}

func (m *memory) put(c *chunk) { m.pool(len(c.buf)).Put(c) }

// chunkFor is the size of chunk that holds n bytes and no head.
func chunkFor(n int) int {
	if n <= smallChunk {
		return smallChunk
	}
	return largeChunk + headroom
}
