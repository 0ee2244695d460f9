//go:build linux

package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Proxies to compare with, a process at each end. What they cost, any forwarder of this kind in Go costs here:
//
//	overTCP     a connection for each one that comes
//	overTLS     the same with TLS 1.3: encryption and nothing else
//	overLibp2p  a stream for each on one TCP connection, TLS and yamux as the library has them: what `ipfs p2p forward` does
//
// None of them survives its path, knows who may use it, or finds anybody.

type carrier string

const (
	overTCP    carrier = "tcp"
	overTLS    carrier = "tls"
	overLibp2p carrier = "libp2p"
)

// proxyVar has this binary be one end: "CARRIER dial|accept LISTEN TARGET". "server LISTEN" answers as serve does.
const proxyVar = "FWD_BENCH_PROXY"

func proxy(what string) error {
	f := strings.Fields(what)
	if f[0] == "server" {
		return acceptAll(f[1], new(server).handle)
	}
	end, listen, target := f[1], f[2], f[3]
	plain := func() (conn, error) { return dialPlain(target) }
	switch c := carrier(f[0]); {
	case c == overLibp2p && end == "accept":
		return libp2pExit(listen, plain)
	case c == overLibp2p:
		dial, err := libp2pDialer(target)
		if err != nil {
			return err
		}
		return acceptAll(listen, func(c net.Conn) { join(c.(conn), dial) })
	case c == overTLS:
		config, err := tlsConfig()
		if err != nil {
			return err
		}
		if end == "accept" {
			return acceptAll(listen, func(c net.Conn) { join(tls.Server(c, config), plain) })
		}
		return acceptAll(listen, func(c net.Conn) {
			join(c.(conn), func() (conn, error) {
				far, err := net.Dial("tcp", target)
				return tls.Client(far, config), err
			})
		})
	}
	return acceptAll(listen, func(c net.Conn) { join(c.(conn), plain) })
}

// conn is what TCP and TLS connections and libp2p streams have in common.
type conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

func acceptAll(addr string, handle func(net.Conn)) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go handle(c) // ends with the connection
	}
}

func dialPlain(target string) (conn, error) {
	c, err := net.Dial("tcp", target)
	if err != nil {
		return nil, err
	}
	return c.(conn), nil
}

func join(near conn, dial func() (conn, error)) {
	defer near.Close()
	far, err := dial()
	if err != nil {
		return
	}
	defer far.Close()
	done := make(chan struct{})
	go func() {
		copyPlain(far, near)
		close(done)
	}()
	copyPlain(near, far)
	<-done
}

// copyPlain copies through memory: what splice(2) does is not open to anything that encrypts.
func copyPlain(to, from conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 128<<10))
	_ = to.CloseWrite()
}

// tlsConfig is of both ends; nobody is authenticated.
func tlsConfig() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
	}, nil
}

const proxyProtocol = "/fwd/bench/1"

// libp2pHost makes a host as the library makes it, with TCP alone.
func libp2pHost(opts ...libp2p.Option) (host.Host, error) {
	return libp2p.New(append(opts, libp2p.Transport(tcp.NewTCPTransport), libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}))...)
}

// exitKey is the accepting host's, which the dialling one has to know.
func exitKey() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 64)))
	return key, err
}

func libp2pExit(listen string, dial func() (conn, error)) error {
	key, err := exitKey()
	if err != nil {
		return err
	}
	at, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listen)))
	if err != nil {
		return err
	}
	h, err := libp2pHost(libp2p.ListenAddrs(at), libp2p.Identity(key))
	if err != nil {
		return err
	}
	h.SetStreamHandler(proxyProtocol, func(s network.Stream) { join(s, dial) })
	select {} // until it is killed
}

func libp2pDialer(target string) (func() (conn, error), error) {
	key, err := exitKey()
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	at, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(target)))
	if err != nil {
		return nil, err
	}
	h, err := libp2pHost(libp2p.NoListenAddrs)
	if err != nil {
		return nil, err
	}
	return func() (conn, error) {
		if err := h.Connect(context.Background(), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{at}}); err != nil {
			return nil, err
		}
		return h.NewStream(context.Background(), id, proxyProtocol)
	}, nil
}
