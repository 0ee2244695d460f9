package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pws "github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// WebSocket over TLS, for networks that let nothing out but the web: a relay listens on 443 by it.
// The web's certificates are neither had nor checked, for inside runs libp2p's own handshake, which
// proves the peer.
//
// Listening is the library's. Dialling is ours: the library's dialer reads HTTPS_PROXY itself, once and
// for all dials, so neither its rules nor its failures would be ours.

const (
	// webSocketWithin is how long TLS and the upgrade to WebSocket may take.
	webSocketWithin = 10 * time.Second
	// webSocketBuffer is read and written at once, bytes: a TLS record.
	webSocketBuffer = 16 << 10
	// closeWithin is how long a closing message may take to leave; the other side needs none.
	closeWithin = 100 * time.Millisecond
)

// webSocket is the transport.
type webSocket struct {
	*libp2pws.WebsocketTransport
	out *outward
}

func newWebSocket(out *outward, listens bool) (*webSocket, error) {
	var opts []libp2pws.Option
	if listens {
		cert, err := selfSigned()
		if err != nil {
			return nil, err
		}
		opts = append(opts, libp2pws.WithTLSConfig(&tls.Config{
			Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
		}))
	}
	t, err := libp2pws.New(out.upgrader, out.limits, nil, opts...)
	return &webSocket{t, out}, err
}

// SkipResolve keeps names as they are: a proxy may know one that we cannot look up, and TLS says it.
func (t *webSocket) SkipResolve(context.Context, ma.Multiaddr) bool { return true }

func (t *webSocket) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.out.dial(ctx, t, addr, p, func(ctx context.Context) (transport.CapableConn, error) {
		return t.out.upgrade(ctx, t, addr, p, func(ctx context.Context) (manet.Conn, error) {
			return overWebSocket(ctx, addr, new(net.Dialer).DialContext, false)
		})
	}, func(ctx context.Context, connect dialContext) (transport.CapableConn, error) {
		return t.out.upgrade(ctx, t, addr, p, func(ctx context.Context) (manet.Conn, error) {
			return overWebSocket(ctx, addr, connect, true)
		})
	})
}

type dialContext func(ctx context.Context, network, address string) (net.Conn, error)

// overWebSocket dials addr: TCP by dial, then TLS if addr has it, then the upgrade. proxied says that
// dial's far end is not the connection's.
func overWebSocket(ctx context.Context, addr ma.Multiaddr, dial dialContext, proxied bool) (manet.Conn, error) {
	_, address, err := manet.DialArgs(addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, webSocketWithin)
	defer cancel()
	var below net.Conn // for its addresses
	d := websocket.Dialer{
		ReadBufferSize: webSocketBuffer, WriteBufferSize: webSocketBuffer,
		TLSClientConfig: &tls.Config{ServerName: host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
		NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			below = c
			return c, err
		},
	}
	u := url.URL{Scheme: "ws", Host: address, Path: "/"}
	if isTLS(addr) {
		u.Scheme = "wss"
	}
	raw, _, err := d.DialContext(ctx, u.String(), nil)
	if err != nil {
		return nil, err
	}
	c := &webSocketConn{Conn: raw, local: wsAddr(below.LocalAddr(), addr), remote: addr}
	if !proxied {
		c.remote = wsAddr(below.RemoteAddr(), addr) // what a name was resolved to
	}
	if c.local == nil || c.remote == nil {
		raw.Close()
		return nil, errors.New("a connection without addresses")
	}
	return c, nil
}

func isTLS(a ma.Multiaddr) bool {
	for _, c := range a {
		if code := c.Protocol().Code; code == ma.P_TLS || code == ma.P_WSS {
			return true
		}
	}
	return false
}

// wsAddr is a's multiaddr with the WebSocket part of like.
func wsAddr(a net.Addr, like ma.Multiaddr) ma.Multiaddr {
	m, err := manet.FromNetAddr(a)
	if err != nil {
		return nil
	}
	_, rest := ma.SplitFunc(like, func(c ma.Component) bool {
		code := c.Protocol().Code
		return code == ma.P_TLS || code == ma.P_WS || code == ma.P_WSS
	})
	return m.Encapsulate(rest)
}

// webSocketConn is a stream of bytes over binary messages, whose bounds mean nothing.
type webSocketConn struct {
	*websocket.Conn
	local, remote ma.Multiaddr

	reading sync.Mutex
	message io.Reader // what is left of the one being read
	writing sync.Mutex
}

func (c *webSocketConn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		if c.message == nil {
			_, r, err := c.NextReader()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseNoStatusReceived) {
				return 0, io.EOF
			} else if err != nil {
				return 0, err
			}
			c.message = r
		}
		n, err := c.message.Read(b)
		if err == io.EOF {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
	}
}

func (c *webSocketConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.WriteMessage(websocket.BinaryMessage, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *webSocketConn) Close() error {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = c.WriteControl(websocket.CloseMessage, bye, time.Now().Add(closeWithin)) // a courtesy
	return c.Conn.Close()
}

func (c *webSocketConn) LocalMultiaddr() ma.Multiaddr  { return c.local }
func (c *webSocketConn) RemoteMultiaddr() ma.Multiaddr { return c.remote }

// selfSigned makes a certificate that says nothing, valid whatever the clocks show.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// upgrade makes a libp2p connection to p out of what dial gives.
func (o *outward) upgrade(ctx context.Context, t transport.Transport, addr ma.Multiaddr, p peer.ID, dial func(context.Context) (manet.Conn, error)) (transport.CapableConn, error) {
	scope, err := o.limits.OpenConnection(network.DirOutbound, true, addr)
	if err != nil {
		return nil, err
	}
	if err := scope.SetPeer(p); err != nil {
		scope.Done()
		return nil, err
	}
	raw, err := dial(ctx)
	if err != nil {
		scope.Done()
		return nil, err
	}
	c, err := o.upgrader.Upgrade(ctx, t, raw, network.DirOutbound, p, scope)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return c, nil
}
