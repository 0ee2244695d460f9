package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Sight is how a relay saw one connection that was made to look.
type Sight struct {
	RTT       time.Duration
	Observed  netip.AddrPort // where the relay sees it come from
	Reflector netip.AddrPort // answers plain UDP; zero: it does not
	Token     []byte         // the permission to ask there
	Clock     time.Time      // the relay's; zero: it does not say
}

// Look connects to a relay once more, at that address alone, asks how it sees the connection, and
// closes it. It is for who examines the network; paths are not chosen by it.
func (n *Node) Look(ctx context.Context, p peer.ID, at ma.Multiaddr) (Sight, error) {
	addrs := []ma.Multiaddr{at}
	if !isWeb(at) { // which resolves its own
		var err error
		if addrs, err = madns.DefaultResolver.Resolve(ctx, at); err != nil {
			return Sight{}, fmt.Errorf("resolve %s: %w", at, err)
		}
	}
	err := fmt.Errorf("%s resolves to no address", at)
	for _, a := range addrs {
		var c network.Conn
		if c, err = n.door.dial(ctx, p, a); err != nil {
			continue
		}
		defer c.Close()
		return lookUntilServed(ctx, c)
	}
	return Sight{}, err
}

// ErrNotServed is Look's when the relay was reached, but does not answer this peer.
var ErrNotServed = errors.New("reached, but it does not serve this machine")

const (
	// servedWithin is how long a relay may take to know a peer that joined just now: the connection makes
	// both compare rosters, a stranger's lives 5 s.
	servedWithin = 4 * time.Second
	// lookAgain is the pause between questions.
	lookAgain = 200 * time.Millisecond
)

// lookUntilServed asks until the relay answers.
func lookUntilServed(ctx context.Context, c network.Conn) (Sight, error) {
	ctx, cancel := context.WithTimeout(ctx, servedWithin)
	defer cancel()
	for {
		s, err := look(ctx, c)
		if err == nil {
			return s, nil
		}
		if !sleep(ctx, lookAgain) || c.IsClosed() {
			return Sight{}, fmt.Errorf("%w: %w", ErrNotServed, err)
		}
	}
}

// look asks for what a relay says of a connection: the address, a proof that begins with its clock, and
// the UDP port and token of its reflector; the last two may be missing.
func look(ctx context.Context, c network.Conn) (s Sight, err error) {
	began := time.Now()
	stream, err := openOn(ctx, c, reflectProtocol)
	if err != nil {
		return s, err
	}
	defer stream.Reset()
	defer context.AfterFunc(ctx, func() { stream.Reset() })()
	stream.CloseWrite()
	in := bufio.NewReader(io.LimitReader(stream, 3*(maxMultiaddr+binary.MaxVarintLen64)))
	first, err := readField(in)
	if err != nil {
		return s, err
	}
	s.RTT = time.Since(began)
	seen, err := ma.NewMultiaddrBytes(first)
	if err != nil {
		return s, fmt.Errorf("the address that %s sees: %w", c.RemotePeer(), err)
	}
	if ip, err := manet.ToIP(seen); err == nil {
		if a, ok := netip.AddrFromSlice(ip); ok {
			port, _ := netip.ParseAddrPort("0.0.0.0:" + portOf(seen))
			s.Observed = netip.AddrPortFrom(a.Unmap(), port.Port())
		}
	}
	if proof, err := readField(in); err == nil && len(proof) > 8 {
		s.Clock = time.Unix(int64(binary.BigEndian.Uint64(proof)), 0)
	}
	if permit, err := readField(in); err == nil && len(permit) > 2 {
		if ip, err := manet.ToIP(c.RemoteMultiaddr()); err == nil {
			if a, ok := netip.AddrFromSlice(ip); ok {
				s.Reflector = netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(permit))
				s.Token = permit[2:]
			}
		}
	}
	return s, nil
}

// readField reads a uvarint length and that many bytes.
func readField(in *bufio.Reader) ([]byte, error) {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	if size > maxMultiaddr {
		return nil, fmt.Errorf("field of %d bytes; at most %d are taken", size, maxMultiaddr)
	}
	b := make([]byte, size)
	_, err = io.ReadFull(in, b)
	return b, err
}
