package forward

import (
	"sync"
	"time"

	"fwd/forward/session"
)

// Sizes a copy buffer can have. The smallest is what 10 000 idle connections hold
// twice each (40 MB; io.Copy's 32 KiB would be 640 MB), the
// largest is where reading more at a time stopped being faster (BenchmarkForward): two
// of a session's messages, for a third that is small costs as much as a large one.
var bufferSizes = [...]int{2 << 10, 8 << 10, 32 << 10, 2 * session.MessageSize}

const (
	// idleAfter is when a silent connection gives a big buffer back: 1 s, longer
	// than the pauses inside a transfer.
	idleAfter = time.Second

	// shrinkAfter is how many reads in a row must have fitted the next smaller
	// buffer before it is taken: 16, so that a transfer's uneven reads do not
	// change buffers all the time.
	shrinkAfter = 16
)

var bufferPools [len(bufferSizes)]sync.Pool // of *[]byte, one pool a size

// A buffer is pooled memory that follows the size of what is read into it.
type buffer struct {
	class int // index into bufferSizes
	mem   *[]byte
	small int // reads in a row that a smaller buffer would have held
}

func newBuffer() *buffer {
	b := &buffer{}
	b.take(0)
	return b
}

func (b *buffer) bytes() []byte { return *b.mem }
func (b *buffer) big() bool     { return b.class > 0 }
func (b *buffer) shrink()       { b.change(0) }
func (b *buffer) free()         { bufferPools[b.class].Put(b.mem); b.mem = nil }

// fit changes the size after a read of n bytes: up when the buffer was filled, down
// when it has long been too big.
func (b *buffer) fit(n int) {
	switch {
	case n == len(*b.mem):
		b.small = 0
		if b.class+1 < len(bufferSizes) {
			b.change(b.class + 1)
		}
	case b.class > 0 && n <= bufferSizes[b.class-1]:
		if b.small++; b.small >= shrinkAfter {
			b.change(b.class - 1)
		}
	default:
		b.small = 0
	}
}

func (b *buffer) change(class int) {
	b.free()
	b.take(class)
}

func (b *buffer) take(class int) {
	b.class, b.small = class, 0
	if mem, ok := bufferPools[class].Get().(*[]byte); ok {
		b.mem = mem
		return
	}
	mem := make([]byte, bufferSizes[class])
	b.mem = &mem
}
