package node

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
)

// testimony is a peer store by which only the roster's relays serve AutoNAT v2. Its client takes for a server whoever
// says that it is one, and believes it that an address cannot be dialled: with a few keys a stranger could have our
// public addresses dropped.
type testimony struct {
	peerstore.Peerstore
	peerstore.CertifiedAddrBook // identify and the host ask for it by type assertion
	relays                      func() []peer.AddrInfo
}

func (t *testimony) SupportsProtocols(p peer.ID, protos ...protocol.ID) ([]protocol.ID, error) {
	found, err := t.Peerstore.SupportsProtocols(p, protos...)
	if slices.Contains(found, autonatv2.DialProtocol) && !t.isRelay(p) {
		found = slices.DeleteFunc(found, func(id protocol.ID) bool { return id == autonatv2.DialProtocol })
	}
	return found, err
}

func (t *testimony) isRelay(p peer.ID) bool {
	return slices.ContainsFunc(t.relays(), func(r peer.AddrInfo) bool { return r.ID == p })
}

// judgeServers has AutoNAT look again at who may serve: it looks when a peer is identified or comes and goes, and not
// when the roster changes.
func (n *Node) judgeServers() {
	e, err := n.parts.host.EventBus().Emitter(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		return
	}
	defer e.Close()
	for _, p := range n.Connected() {
		if says, _ := n.parts.host.Peerstore().GetProtocols(p); slices.Contains(says, autonatv2.DialProtocol) {
			e.Emit(event.EvtPeerProtocolsUpdated{Peer: p})
		}
	}
}
