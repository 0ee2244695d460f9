package datagram

import (
	"bufio"
	"bytes"
	"testing"
)

// What parses also prints: a stream of frames is read and written again as the same bytes.
func FuzzFrame(f *testing.F) {
	for _, fr := range []frame{
		{typ: frameData, number: 1, data: []byte("x")}, {typ: frameData, number: 1 << 63}, {typ: frameOpen, number: 300, service: "dns", data: []byte("?")},
		{typ: frameOpened, number: 2}, {typ: frameClose, number: 3, code: Denied}, {typ: framePing, number: 4}, {typ: framePong, number: 5},
	} {
		f.Add(fr.append(nil))
	}
	f.Add([]byte{0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		r := bufio.NewReader(in)
		room := make([]byte, MaxSize)
		var printed []byte
		for {
			fr, err := readFrame(r, room)
			if err != nil {
				break
			}
			printed = fr.append(printed)
		}
		if !bytes.HasPrefix(b, printed) {
			t.Fatalf("%x was read as %x", b, printed)
		}
	})
}

func FuzzPacket(f *testing.F) {
	f.Add(appendPacket(nil, toExit, 1, []byte("x")))
	f.Add(appendPacket(nil, toEntry, 1<<40, nil))
	f.Add([]byte{1, 0x80, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		direction, flow, data, ok := parsePacket(b)
		if ok && !bytes.Equal(appendPacket(nil, direction, flow, data), b) {
			t.Fatalf("%x was read as %d %d %x", b, direction, flow, data)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{packets: true, boot: 7}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := readHello(bytes.NewReader(h.append(nil)))
		if err != nil || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

func TestAServicesNameSpoilsNoLogLine(t *testing.T) {
	room := make([]byte, MaxSize)
	for _, name := range []string{"", "a\nb", "\x1b[2J", "\xff", string(make([]byte, maxService+1))} {
		open := frame{typ: frameOpen, number: 1, service: name}.append(nil)
		if _, err := readFrame(bufio.NewReader(bytes.NewReader(open)), room); err == nil {
			t.Errorf("an OPEN of %q is taken", name)
		}
	}
}
