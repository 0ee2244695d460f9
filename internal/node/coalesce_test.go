package node

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	manet "github.com/multiformats/go-multiaddr/net"
)

// counted counts writes.
type counted struct {
	manet.Conn
	writes int
}

func (c *counted) Write(p []byte) (int, error) { c.writes++; return c.Conn.Write(p) }

// limited is a circuit through a relay that grants little.
type limited struct{ manet.Conn }

func (limited) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Limited: true}}
}

func TestLimitsOfACircuitAreSeenThroughCoalescing(t *testing.T) {
	if c := newCoalescing(limited{}); !c.Stat().Limited {
		t.Error("the circuit seems unlimited")
	}
	if c := newCoalescing(&counted{}); c.Stat().Limited {
		t.Error("what has no limits seems limited")
	}
}

func TestRecordsAreWrittenTogetherInOrderAndNoneIsKept(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := manet.WrapNetConn(dialled)
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{Conn: near}
	w := newCoalescing(c)
	defer w.Close()

	rng := rand.New(rand.NewPCG(1, 2))
	var want []byte
	records := 0
	write := func(size int) {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		want = append(want, b...)
		records++
		if n, err := w.Write(b); n != size || err != nil {
			t.Fatal(n, err)
		}
	}
	check := func() {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(far, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("other bytes, or another order")
		}
		want = want[:0]
	}
	for range 20 {
		for range 3 {
			write(fullRecord)
		}
		write(1 + rng.IntN(fullRecord-1))
		check()
	}
	if c.writes > records*3/4 {
		t.Errorf("%d writes for %d records", c.writes, records)
	}
	for n := range 10 { // nothing follows: the last one comes all the same
		for range n + 1 {
			write(fullRecord)
		}
		check()
	}
}
