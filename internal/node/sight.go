package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
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
// closes it. It is for who examines the network; paths are not chosen by it. Names are looked up for
// WebSocket alone: who looks is to know which of a name's addresses it was.
func (n *Node) Look(ctx context.Context, p peer.ID, at ma.Multiaddr) (Sight, error) {
	c, err := n.door.dial(ctx, p, at)
	if err != nil {
		return Sight{}, err
	}
	defer c.Close()
	return lookUntilServed(ctx, c)
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

// look asks for what a relay says of a connection.
func look(ctx context.Context, c network.Conn) (Sight, error) {
	began := time.Now()
	r, err := observe(ctx, c)
	if err != nil {
		return Sight{}, err
	}
	s := Sight{RTT: time.Since(began), Clock: r.proof.At}
	s.Observed, _ = addrPortOf(r.addr)
	if at, ok := addrPortOf(c.RemoteMultiaddr()); ok && r.port != 0 {
		s.Reflector, s.Token = netip.AddrPortFrom(at.Addr(), r.port), r.token[:]
	}
	return s, nil
}
