package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// The way to a relay through an HTTP proxy, for TCP and WebSocket. Steps of one dial:
//
//  1. dial as if there were no proxy; where one is set it is often not needed
//  2. after proxyAfter, or when that has failed, ask the proxy too (CONNECT host:port)
//  3. the first connection whose handshake proves the peer wins, the other one is closed
//
// Punching and other peers' addresses never go through a proxy: what a relay sees of such a connection
// is the proxy's address.

const (
	// proxyAfter is how long the proxy waits for the direct way: 1 s, a slow direct handshake.
	proxyAfter = time.Second
	// maxConnectAnswer is the most bytes of a proxy's answer that are read.
	maxConnectAnswer = 16 << 10
)

// outward is what dialling needs beyond the libraries' transports.
type outward struct {
	upgrader transport.Upgrader
	limits   network.ResourceManager
	// proxy gives the proxy for reaching p at an address (host:port); nil: none.
	proxy proxyFor
}

// proxyFor is the node's: members other than relays are not reached through a proxy.
func (n *Node) proxyFor(p peer.ID, address string) *url.URL {
	if n.cfg.Proxy == nil {
		return nil
	}
	if _, relay := n.relayInfo(p); !relay && n.cfg.Member(p) {
		return nil
	}
	return n.cfg.Proxy(address)
}

// dial races the direct way and the one through a proxy.
func (o *outward) dial(ctx context.Context, t transport.Transport, addr ma.Multiaddr, p peer.ID,
	direct func(context.Context) (transport.CapableConn, error),
	through func(context.Context, dialContext) (transport.CapableConn, error),
) (transport.CapableConn, error) {
	var proxy *url.URL
	_, address, err := manet.DialArgs(addr)
	if punching, _, _ := network.GetSimultaneousConnect(ctx); err == nil && !punching && o.proxy != nil {
		proxy = o.proxy(p, address)
	}
	if proxy == nil {
		return direct(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn transport.CapableConn
		err  error
	}
	results := make(chan result, 2)
	failed := make(chan struct{}) // the direct way
	var ways sync.WaitGroup
	ways.Go(func() {
		c, err := direct(ctx)
		if err != nil {
			close(failed)
		}
		results <- result{c, err}
	})
	ways.Go(func() {
		wait := time.NewTimer(proxyAfter)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-failed:
		case <-ctx.Done():
			results <- result{nil, ctx.Err()}
			return
		}
		c, err := through(ctx, func(ctx context.Context, _, address string) (net.Conn, error) {
			return connectThrough(ctx, proxy, address)
		})
		if err != nil {
			err = &proxyError{proxy.Host, err}
		}
		results <- result{c, err}
	})
	var errs []error
	for range 2 {
		r := <-results
		if r.err != nil {
			errs = append(errs, r.err)
			continue
		}
		cancel()
		if len(errs) == 0 { // the other way may just have got through as well
			ways.Wait()
			if late := <-results; late.err == nil {
				late.conn.Close()
			}
		}
		return r.conn, nil
	}
	return nil, errors.Join(errs...)
}

// proxiedTCP is TCP whose dials to relays may go through a proxy.
type proxiedTCP struct {
	*tcp.TcpTransport
	out *outward
}

func (t *proxiedTCP) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, addr, p, nil)
}

func (t *proxiedTCP) DialWithUpdates(ctx context.Context, addr ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	return t.out.dial(ctx, t, addr, p, func(ctx context.Context) (transport.CapableConn, error) {
		return t.TcpTransport.DialWithUpdates(ctx, addr, p, updates)
	}, func(ctx context.Context, connect dialContext) (transport.CapableConn, error) {
		return t.out.upgrade(ctx, t, addr, p, func(ctx context.Context) (manet.Conn, error) {
			_, address, err := manet.DialArgs(addr)
			if err != nil {
				return nil, err
			}
			c, err := connect(ctx, "tcp", address)
			if err != nil {
				return nil, err
			}
			local, err := manet.FromNetAddr(c.LocalAddr())
			if err != nil {
				c.Close()
				return nil, err
			}
			return &proxiedConn{c, local, addr}, nil
		})
	})
}

// proxiedConn has the address that was asked for, not the proxy's.
type proxiedConn struct {
	net.Conn
	local, remote ma.Multiaddr
}

func (c *proxiedConn) LocalMultiaddr() ma.Multiaddr  { return c.local }
func (c *proxiedConn) RemoteMultiaddr() ma.Multiaddr { return c.remote }

// connectThrough has a proxy (http or https) connect to address, host:port.
func connectThrough(ctx context.Context, proxy *url.URL, address string) (_ net.Conn, err error) {
	at := proxy.Host
	if proxy.Port() == "" {
		at = net.JoinHostPort(proxy.Hostname(), map[string]string{"http": "80", "https": "443"}[proxy.Scheme])
	}
	var c net.Conn
	switch proxy.Scheme {
	case "http":
		c, err = new(net.Dialer).DialContext(ctx, "tcp", at)
	case "https":
		c, err = new(tls.Dialer).DialContext(ctx, "tcp", at)
	default:
		return nil, fmt.Errorf("a proxy of kind %q is not known; http and https are", proxy.Scheme)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })() // ends the exchange below

	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return nil, err
	}
	// The answer is read byte by byte, for what follows it is the relay's.
	answer, err := http.ReadResponse(bufio.NewReaderSize(&oneByte{c, maxConnectAnswer}, 16), req)
	if err != nil {
		return nil, fmt.Errorf("read its answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it refuses to connect to %s: %s", address, answer.Status)
	}
	return c, nil
}

// oneByte reads no more than one byte at a time and left in all.
type oneByte struct {
	net.Conn
	left int
}

func (o *oneByte) Read(b []byte) (int, error) {
	if o.left--; o.left < 0 {
		return 0, errors.New("too long")
	}
	return o.Conn.Read(b[:min(len(b), 1)])
}
