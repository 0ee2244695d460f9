package node

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"
)

// originOf is where a connection comes from, as far as crowds are counted: an IPv4 address, an IPv6
// network of the size that one customer has, or the relay that carries it.
func originOf(a ma.Multiaddr) string {
	if relay := relayOf(a); relay != "" {
		return string(relay)
	}
	ip, ok := ipOf(a)
	if !ok {
		return ""
	}
	if ip.Is6() {
		if net, err := ip.Prefix(64); err == nil {
			return net.String()
		}
	}
	return ip.String()
}

func ipOf(a ma.Multiaddr) (netip.Addr, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	return addr.Unmap(), ok
}

// discreet is the stream on which a stranger is told who we are. It holds back what identify writes
// until the end, and leaves out what only roster peers are told: private addresses (but for those of
// the stranger's own network, which it sees anyway), the relays we are at, and the signed record that
// has all of them in it.
type discreet struct {
	network.Stream
	said bytes.Buffer
}

// maxSaid bounds what is held back; identify itself writes 8 KiB at most.
const maxSaid = 64 << 10

func (d *discreet) Write(b []byte) (int, error) {
	if d.said.Len()+len(b) > maxSaid {
		return 0, errors.New("more than identify has to say")
	}
	return d.said.Write(b)
}

func (d *discreet) CloseWrite() error { return errors.Join(d.say(), d.Stream.CloseWrite()) }

func (d *discreet) Close() error {
	if err := d.say(); err != nil {
		d.Stream.Reset()
		return err
	}
	return d.Stream.Close()
}

func (d *discreet) say() error {
	said := d.said.Bytes()
	d.said = bytes.Buffer{}
	out, err := withoutPrivate(said, d.Conn().RemoteMultiaddr())
	if err != nil || len(out) == 0 {
		return err
	}
	_, err = d.Stream.Write(out)
	return err
}

// discreetLimits is the swarm's resource manager. It ends identify's pushes to strangers before a byte is said: they tell
// all that discreet leaves out, on streams that we open, so the guard does not see them. The library asks only the
// stream's scope whether it may push.
type discreetLimits struct {
	network.ResourceManager
	member func(peer.ID) bool
}

func (l *discreetLimits) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	scope, err := l.ResourceManager.OpenStream(p, dir)
	if err != nil || dir != network.DirOutbound || l.member(p) {
		return scope, err
	}
	return &discreetScope{scope}, nil
}

// discreetScope is that of a stream to a stranger.
type discreetScope struct{ network.StreamManagementScope }

var errNoPush = errors.New("strangers are pushed nothing")

func (s *discreetScope) SetProtocol(p protocol.ID) error {
	if p == identify.IDPush {
		return errNoPush
	}
	return s.StreamManagementScope.SetProtocol(p)
}

// withoutPrivate rewrites identify's messages, each after its length, for a stranger at that address.
func withoutPrivate(said []byte, stranger ma.Multiaddr) (out []byte, err error) {
	for len(said) > 0 {
		size, n := binary.Uvarint(said)
		if n <= 0 || size > uint64(len(said)-n) {
			return nil, errors.New("no message of identify's")
		}
		var msg pb.Identify
		if err := proto.Unmarshal(said[n:n+int(size)], &msg); err != nil {
			return nil, err
		}
		said = said[n+int(size):]
		msg.SignedPeerRecord = nil
		shown := msg.ListenAddrs
		msg.ListenAddrs = nil
		for _, b := range shown {
			if a, err := ma.NewMultiaddrBytes(b); err == nil && showable(a, stranger) {
				msg.ListenAddrs = append(msg.ListenAddrs, b)
			}
		}
		body, err := proto.Marshal(&msg)
		if err != nil {
			return nil, err
		}
		out = append(binary.AppendUvarint(out, uint64(len(body))), body...)
	}
	return out, nil
}

// showable says whether a stranger may see one of our addresses.
func showable(a, stranger ma.Multiaddr) bool {
	if !isIP(a) {
		return false // a circuit: which relays we are at
	}
	ip, ok := ipOf(a)
	if !ok || manet.IsPublicAddr(a) {
		return true // a name, or public
	}
	from, ok := ipOf(stranger)
	if !ok || relayOf(stranger) != "" || from.Is4() != ip.Is4() {
		return false
	}
	if ip.IsLoopback() {
		return from.IsLoopback()
	}
	bits := 16
	if ip.Is6() {
		bits = 64
	}
	net, err := ip.Prefix(bits)
	return err == nil && net.Contains(from)
}
