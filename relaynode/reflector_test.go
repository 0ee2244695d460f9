package relaynode

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// ask is a request as a client prints it.
func reflectRequest(permission []byte, nonce byte, extra byte, port uint16) []byte {
	b := append([]byte{kindRequest}, bytes.Repeat([]byte{nonce}, nonceSize)...)
	b = append(b, permission[2:]...)
	b = binary.BigEndian.AppendUint16(append(b, extra), port)
	return append(b, make([]byte, requestSize-len(b))...)
}

func TestReflectorAnswersOnlyWhoHoldsATokenForItsAddress(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newReflector(func() time.Time { return now })
	r.ports[true] = 4002
	us, them := netip.MustParseAddrPort("7.0.0.9:40000"), netip.MustParseAddrPort("7.0.0.8:40000")
	request := reflectRequest(r.permission(us.Addr().AsSlice()), 7, extraOther, 0)

	answer, extra, _, ok := r.answer(request, us)
	if !ok || extra != extraOther || len(answer) != answerSize {
		t.Fatalf("answer %x, extra %d, %v", answer, extra, ok)
	}
	for i := range answer[1+nonceSize:] {
		answer[1+nonceSize+i] ^= 7
	}
	if ip, port := netip.AddrFrom16([16]byte(answer[17:33])).Unmap(), binary.BigEndian.Uint16(answer[33:]); ip != us.Addr() || port != us.Port() {
		t.Errorf("answered %v %d, want %v", ip, port, us)
	}
	if _, _, _, ok := r.answer(request, them); ok {
		t.Error("a token served another address")
	}
	if _, _, _, ok := r.answer(request[:requestSize-1], us); ok {
		t.Error("a short request was answered")
	}
	now = now.Add(tokenSlot)
	if _, _, _, ok := r.answer(request, us); !ok {
		t.Error("the token died early")
	}
	now = now.Add(tokenSlot)
	if _, _, _, ok := r.answer(request, us); ok {
		t.Error("the token lives for ever")
	}
}

func TestReflectorAmplifiesNothing(t *testing.T) {
	if 2*answerSize > requestSize {
		t.Errorf("two answers of %d bytes to a request of %d", answerSize, requestSize)
	}
}

func TestReflectorAnswersFromOtherPortsWhereAsked(t *testing.T) {
	r := newReflector(time.Now)
	r.open([]ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/udp/14001/quic-v1")}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.serve(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	a, b := listen(), listen()
	permission := r.permission(net.IPv4(127, 0, 0, 1))
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), binary.BigEndian.Uint16(permission))
	read := func(c *net.UDPConn) netip.AddrPort {
		t.Helper()
		buf := make([]byte, 100)
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || n != answerSize {
			t.Fatalf("%d bytes, %v", n, err)
		}
		return from
	}
	a.WriteToUDPAddrPort(reflectRequest(permission, 1, extraOther, 0), to)
	if x, y := read(a), read(a); x == y {
		t.Errorf("both answers from %v", x)
	}
	a.WriteToUDPAddrPort(reflectRequest(permission, 2, extraPort, uint16(b.LocalAddr().(*net.UDPAddr).Port)), to)
	read(a)
	read(b)
}

func TestReflectorAnswersByTCPWhoHoldsAToken(t *testing.T) {
	r := newReflector(time.Now)
	r.open([]ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/udp/14101/quic-v1")}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.serve(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	us := net.IPv4(127, 0, 0, 1)
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(binary.BigEndian.Uint16(r.stream(us)))))
	ask := func(request []byte) (net.Addr, []byte) {
		t.Helper()
		c, err := net.Dial("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write(request)
		answer, _ := io.ReadAll(c)
		return c.LocalAddr(), answer
	}
	own, answer := ask(reflectRequest(r.permission(us), 0, 0, 0))
	if len(answer) != answerSize || int(binary.BigEndian.Uint16(answer[33:])) != own.(*net.TCPAddr).Port {
		t.Errorf("answered %x to %v", answer, own)
	}
	if _, answer := ask(bytes.Repeat([]byte{kindRequest}, requestSize)); len(answer) > 0 {
		t.Errorf("answered %x to a stranger", answer)
	}
}

func TestReflectorStandsBesideTheSamePortAtEveryStart(t *testing.T) {
	at := func(words ...string) (out []ma.Multiaddr) {
		for _, w := range words {
			out = append(out, ma.StringCast(w))
		}
		return out
	}
	const web, usual, usual6 = "/ip4/0.0.0.0/udp/443/quic-v1", "/ip4/0.0.0.0/udp/4001/quic-v1", "/ip6/::/udp/4001/quic-v1"
	for _, c := range []struct {
		name      string
		listening []ma.Multiaddr
		v4        bool
		want      string
	}{
		{"4001 before 443", at(usual, web), true, "0.0.0.0:4001"},
		{"443 before 4001", at(web, usual), true, "0.0.0.0:4001"},
		{"443 alone", at("/ip4/0.0.0.0/tcp/4001", web), true, "0.0.0.0:443"},
		{"53 and 443", at(web, "/ip4/0.0.0.0/udp/53/quic-v1"), true, "0.0.0.0:53"},
		{"two ports of programs", at("/ip4/0.0.0.0/udp/5001/quic-v1", usual), true, "0.0.0.0:4001"},
		{"one port of two addresses", at("/ip4/7.0.0.11/udp/4001/quic-v1", "/ip4/7.0.0.10/udp/4001/quic-v1"), true, "7.0.0.10:4001"},
		{"the other family", at(web, usual6, usual, "/ip6/::/udp/443/quic-v1"), false, "[::]:4001"},
		{"none of the family", at(usual), false, "invalid AddrPort"},
	} {
		if got, ok := quicAddr(c.listening, c.v4); got.String() != c.want || ok != got.IsValid() {
			t.Errorf("%s: beside %s, want %s", c.name, got, c.want)
		}
	}
}

func FuzzReflectRequest(f *testing.F) {
	r := newReflector(time.Now)
	r.ports[true] = 1
	from := netip.MustParseAddrPort("7.0.0.9:40000")
	f.Add(reflectRequest(r.permission(from.Addr().AsSlice()), 1, extraPort, 9))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if answer, _, _, ok := r.answer(b, from); ok && len(answer) != answerSize {
			t.Errorf("answer of %d bytes", len(answer))
		}
	})
}
