package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// timelessTLS is libp2p's TLS with certificates that are good at any time. Theirs begin an hour before they are
// made, so two machines of which one's clock is wrong by more do not get through a handshake, and such a machine
// would not even hear what is wrong with it. The key is what proves a peer; the dates prove nothing. QUIC has the
// library's own certificates still: without the right time there is TCP alone.
type timelessTLS struct {
	self     peer.ID
	identity *libp2ptls.Identity
	muxers   []string
}

// libp2pALPN is the name by which libp2p's TLS goes where no multiplexer is agreed upon in the handshake.
const libp2pALPN = "libp2p"

func newTimelessTLS(key crypto.PrivKey, muxers ...protocol.ID) (*timelessTLS, error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	identity, err := libp2ptls.NewIdentity(key, libp2ptls.WithCertTemplate(&x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{SerialNumber: serial.String()},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // X.509's word for no end
	}))
	if err != nil {
		return nil, err
	}
	t := &timelessTLS{self: self, identity: identity}
	for _, m := range muxers {
		t.muxers = append(t.muxers, string(m))
	}
	return t, nil
}

func (t *timelessTLS) ID() protocol.ID { return libp2ptls.ID }

func (t *timelessTLS) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	return t.secure(ctx, c, p, tls.Server)
}

func (t *timelessTLS) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	return t.secure(ctx, c, p, tls.Client)
}

func (t *timelessTLS) secure(ctx context.Context, c net.Conn, p peer.ID, side func(net.Conn, *tls.Config) *tls.Conn) (sec.SecureConn, error) {
	config, keys := t.identity.ConfigForPeer(p)
	config.NextProtos = append(append([]string{}, t.muxers...), libp2pALPN)
	secured := side(c, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	var key crypto.PubKey
	select {
	case key = <-keys: // written in the handshake, and then closed
	default:
	}
	if key == nil {
		return nil, errors.Join(errors.New("the peer showed no key"), c.Close())
	}
	remote, err := peer.IDFromPublicKey(key)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the peer's key: %w", err), c.Close())
	}
	mux := secured.ConnectionState().NegotiatedProtocol
	if mux == libp2pALPN {
		mux = ""
	}
	return &timelessConn{Conn: secured, self: t.self, remote: remote, key: key,
		state: network.ConnectionState{StreamMultiplexer: protocol.ID(mux), UsedEarlyMuxerNegotiation: mux != ""}}, nil
}

type timelessConn struct {
	*tls.Conn
	self, remote peer.ID
	key          crypto.PubKey
	state        network.ConnectionState
}

func (c *timelessConn) LocalPeer() peer.ID                 { return c.self }
func (c *timelessConn) RemotePeer() peer.ID                { return c.remote }
func (c *timelessConn) RemotePublicKey() crypto.PubKey     { return c.key }
func (c *timelessConn) ConnState() network.ConnectionState { return c.state }
