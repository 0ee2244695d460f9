package session

import (
	"bytes"
	"testing"
)

func FuzzFrame(f *testing.F) {
	for _, x := range []frame{{frameData, 1}, {frameData, maxData}, {frameAck, 1 << 60}, {framePing, 7}, {framePong, 1 << 63}, {frameEnd, endCut}, {frameRenew, 0}} {
		f.Add(appendFrame(nil, x))
	}
	f.Add([]byte{0, 0})
	f.Add([]byte{1, 0x80, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		x, n, err := parseFrame(b)
		if err == errShort && len(b) >= maxFrame {
			t.Fatal("wants more than a frame")
		}
		if err != nil {
			return
		}
		if got := appendFrame(nil, x); !bytes.Equal(got, b[:n]) {
			t.Fatalf("%x prints as %x", b[:n], got)
		}
	})
}

func FuzzAttach(f *testing.F) {
	f.Add((&attach{flags: 1, lane: 3, epoch: 9, offset: 1 << 40, ext: []byte("more")}).append(nil))
	f.Add((&reply{status: statusDesync, offset: 5}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if a, err := readAttach(r); err == nil {
			got, want := a.append(nil), bytes.Clone(b[:len(b)-r.Len()])
			want[4] &= attachFlags // unknown flags are ignored
			if !bytes.Equal(got, want) {
				t.Fatalf("%x prints as %x", want, got)
			}
		}
		r = bytes.NewReader(b)
		if a, err := readReply(r); err == nil {
			want := bytes.Clone(b[:replySize])
			want[1], want[2], want[3] = 0, 0, 0
			if got := a.append(nil); !bytes.Equal(got, want) {
				t.Fatalf("%x prints as %x", want, got)
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add((&open{service: "nas"}).append(nil))
	f.Add((&open{service: string(bytes.Repeat([]byte("x"), maxService))}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := readOpen(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := readOpen(bytes.NewReader(o.append(nil)))
		if err != nil || *again != *o {
			t.Fatal(o, again, err)
		}
	})
}
