package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"fwd/identity"
)

// One key on two machines (a copied home, a cloned disk) makes each of them lose
// what the other one has just got: reservations, circuits, sessions. Neither can
// see it, but whoever is connected to both can: two processes answer to one peer
// ID at once. It tells both, and their logs and status say so.
//
// A process that was restarted leaves its connections behind for a while; so the
// older one is asked, over its very connection, before anything is said.

// twinWait bounds the question to the older connection.
const twinWait = 5 * time.Second

// twinRemembered is how long a status tells of a twin that is not heard of any more.
const twinRemembered = 10 * time.Minute

type twins struct {
	mu    sync.Mutex
	boots map[network.Conn]string // of the peers' processes, by open connection
	told  map[peer.ID]time.Time   // when a peer was last told, to keep it to once a minute

	where string // another process with our own key, and when we were told of it
	when  time.Time
}

func newTwins() *twins {
	return &twins{boots: map[network.Conn]string{}, told: map[peer.ID]time.Time{}}
}

// note keeps the boot of the process behind c, and returns another open connection
// of the same peer that another process had.
func (t *twins) note(c network.Conn, boot string, now time.Time) (other network.Conn, was string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for have, b := range t.boots {
		switch {
		case have.IsClosed():
			delete(t.boots, have)
		case have != c && have.RemotePeer() == c.RemotePeer() && b != boot:
			other, was = have, b
		}
	}
	t.boots[c] = boot
	if other == nil || now.Sub(t.told[c.RemotePeer()]) < time.Minute {
		return nil, ""
	}
	t.told[c.RemotePeer()] = now
	return other, was
}

// greeted looks at what a member's hello says of its process, and takes its word
// that ours has a twin.
func (d *Daemon) greeted(c network.Conn, theirs rosterHello) {
	if a, err := ma.NewMultiaddr(theirs.Twin); err == nil && theirs.Twin != "" {
		d.twins.mu.Lock()
		d.twins.where, d.twins.when = a.String(), time.Now()
		d.twins.mu.Unlock()
		d.log.Error("another machine uses this machine's key: each disturbs the other; give one of them a home of its own",
			"code", "key-in-use-twice", "it is at", a.String(), "says", d.nameOf(c.RemotePeer()))
	}
	if theirs.Boot == "" || len(theirs.Boot) > 64 {
		return
	}
	if other, was := d.twins.note(c, theirs.Boot, time.Now()); other != nil {
		go d.proveTwins(c, theirs.Boot, other, was) // ends within two questions
	}
}

// proveTwins asks both connections for their processes and tells both of the other.
func (d *Daemon) proveTwins(c network.Conn, boot string, other network.Conn, was string) {
	for _, ask := range []struct {
		conn network.Conn
		boot string
		twin network.Conn
	}{{other, was, c}, {c, boot, other}} {
		got, err := d.askBoot(ask.conn, ask.twin.RemoteMultiaddr().String())
		if err != nil || got != ask.boot {
			return // the older one is dead, or not what it was
		}
	}
	d.log.Error("two machines share one key", "code", "key-in-use-twice", "peer", d.nameOf(c.RemotePeer()),
		"one", other.RemoteMultiaddr().String(), "other", c.RemoteMultiaddr().String())
}

// askBoot has the process at the other end of c say which one it is.
func (d *Daemon) askBoot(c network.Conn, twin string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), twinWait)
	defer cancel()
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "roster"))
	if err != nil {
		return "", err
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(twinWait))
	if err := s.SetProtocol(rosterProtocol); err != nil {
		return "", err
	}
	if err := multistream.SelectProtoOrFail(rosterProtocol, s); err != nil {
		return "", err
	}
	hello := d.hello()
	hello.Twin = twin
	if err := identity.WriteMsg(s, hello); err != nil {
		return "", err
	}
	var reply rosterReply
	err = identity.ReadMsg(s, identity.MaxRosterMsg, &reply)
	return reply.Boot, err
}

// warnings are what a person should know about this machine.
func (t *twins) warnings(now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.where == "" || now.Sub(t.when) > twinRemembered {
		return []string{}
	}
	return []string{fmt.Sprintf("another machine, at %s, uses this machine's key; each disturbs the other: give one of them a home of its own (key-in-use-twice)", t.where)}
}
