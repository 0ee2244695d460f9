package session

import "sync"

// An inbox holds what has come for a session and its application has not read yet. The lane's reader reads from the
// stream straight into its last segment; the session's lock guards everything else.
type inbox struct {
	mem         *memory
	first, last *segment
	n           int  // bytes to read
	filling     bool // the lane's reader is at work behind last's bytes
}

type segment struct {
	next *segment
	r, w int // buf[r:w] is unread
	buf  []byte
}

// segmentSizes in bytes: thousands of sessions may each have a few bytes waiting, one may have a window full.
var segmentSizes = [...]int{512, 4 << 10, 16 << 10, 64 << 10}

// space is where the next bytes go, n of them at most. filled must follow.
func (b *inbox) space(n int) []byte {
	if b.last == nil || b.last.w == len(b.last.buf) {
		s := b.mem.segment(n)
		if b.last == nil {
			b.first = s
		} else {
			b.last.next = s
		}
		b.last = s
	}
	b.filling = true
	s := b.last
	return s.buf[s.w:min(len(s.buf), s.w+n)]
}

// filled counts n bytes that are in the space now; done: no more will be put there.
func (b *inbox) filled(n int, done bool) {
	b.last.w += n
	b.n += n
	b.mem.unread.Add(int64(n))
	if done || b.last.w == len(b.last.buf) {
		b.filling = false
		b.trim()
	}
}

// read takes bytes out.
func (b *inbox) read(p []byte) (n int) {
	for n < len(p) && b.first != nil && b.first.r < b.first.w {
		s := b.first
		m := copy(p[n:], s.buf[s.r:s.w])
		s.r += m
		n += m
		b.trim()
	}
	b.n -= n
	b.mem.unread.Add(-int64(n))
	return n
}

// trim gives back segments that have been read.
func (b *inbox) trim() {
	for s := b.first; s != nil && s.r == s.w && !(b.filling && s == b.last); s = b.first {
		if b.first = s.next; b.first == nil {
			b.last = nil
		}
		b.mem.putSegment(s)
	}
}

// drop throws away what is unread.
func (b *inbox) drop() {
	for s := b.first; s != nil; s = s.next {
		s.r = s.w
	}
	b.mem.unread.Add(-int64(b.n))
	b.n = 0
	b.trim()
}

// segment gives one for n bytes, or the largest.
func (m *memory) segment(n int) *segment {
	class := 0
	for class < len(segmentSizes)-1 && segmentSizes[class] < n {
		class++
	}
	if s, ok := m.segments[class].Get().(*segment); ok {
		*s = segment{buf: s.buf}
		return s
	}
	return &segment{buf: make([]byte, segmentSizes[class])}
}

func (m *memory) putSegment(s *segment) {
	for class, size := range segmentSizes {
		if len(s.buf) == size {
			m.segments[class].Put(s)
			return
		}
	}
}

// segments are the spare ones, by size.
type segments [len(segmentSizes)]sync.Pool
