package node

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

type fakeConn struct {
	network.Conn
	remote ma.Multiaddr
}

func (c fakeConn) RemoteMultiaddr() ma.Multiaddr { return c.remote }

func TestMappingIsToldByWhatDifferentRelaysSee(t *testing.T) {
	local := []ma.Multiaddr{ma.StringCast("/ip4/192.168.1.2/udp/4001/quic-v1")}
	seen := func(pairs ...string) map[*link]observation {
		m := make(map[*link]observation)
		for i := 0; i < len(pairs); i += 2 {
			l := &link{conn: fakeConn{remote: ma.StringCast("/ip4/" + pairs[i] + "/udp/4001/quic-v1")}}
			m[l] = observation{reflected: reflected{addr: ma.StringCast(pairs[i+1] + "/quic-v1")}}
		}
		return m
	}
	for _, c := range []struct {
		name string
		seen map[*link]observation
		want punch.Mapping
		kept bool
	}{
		{"nobody saw us", nil, punch.Unknown, false},
		{"our own address", seen("7.0.0.1", "/ip4/192.168.1.2/udp/4001"), punch.None, true},
		{"one relay, port kept", seen("7.0.0.1", "/ip4/7.1.0.1/udp/4001"), punch.Unknown, true},
		{"one relay, another port", seen("7.0.0.1", "/ip4/7.1.0.1/udp/5001"), punch.Unknown, false},
		{"two relays agree", seen("7.0.0.1", "/ip4/7.1.0.1/udp/5001", "7.0.0.2", "/ip4/7.1.0.1/udp/5001"), punch.Independent, false},
		{"a relay in our own network sees no NAT", seen("192.168.1.1", "/ip4/192.168.1.2/udp/4001", "7.0.0.1", "/ip4/7.1.0.1/udp/5001"), punch.Unknown, false},
		{"two relays differ", seen("7.0.0.1", "/ip4/7.1.0.1/udp/5001", "7.0.0.2", "/ip4/7.1.0.1/udp/5002"), punch.Dependent, false},
	} {
		got := classify(c.seen, local, "quic-v1")
		if got.Mapping != c.want || got.Kept != c.kept {
			t.Errorf("%s: got %q, kept %v", c.name, got.Mapping, got.Kept)
		}
	}
}

func TestUDPIsCalledBlockedOnlyWhereARelayHasIt(t *testing.T) {
	tcp := ma.StringCast("/ip4/127.0.0.1/tcp/0")
	nobody := ma.StringCast("/ip4/127.0.0.1/udp/9/quic-v1")
	for want, listed := range map[string][]ma.Multiaddr{"unknown": nil, "blocked": {nobody}} {
		m := newMesh(t)
		m.relay(Config{Listen: []ma.Multiaddr{tcp}})
		m.relays[0].Addrs = append(m.relays[0].Addrs, listed...)
		a := m.join(Config{})
		eventually(t, "seen by TCP", func() bool { return len(a.NAT().Observed) > 0 })
		if got := a.NAT().UDP; got != want {
			t.Errorf("a relay at %v: UDP is %s, want %s", m.relays[0].Addrs, got, want)
		}
	}
}

func FuzzReflectedAddress(f *testing.F) {
	good := ma.StringCast("/ip4/7.0.0.1/udp/1/quic-v1").Bytes()
	f.Add(append(binary.AppendUvarint(nil, uint64(len(good))), good...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := readReflected(bytes.NewReader(b)); err == nil && !isIP(r.addr) {
			t.Errorf("took %s", r.addr)
		}
	})
}
