package node

import (
	"context"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// shake has client and server secure a loopback connection.
func shake(t *testing.T, client, server sec.SecureTransport, want peer.ID) (c, s sec.SecureConn, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	accepted := make(chan sec.SecureConn, 1)
	go func() {
		defer close(accepted)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { raw.Close() })
		if s, err := server.SecureInbound(ctx, raw, ""); err == nil {
			accepted <- s
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	c, err = client.SecureOutbound(ctx, raw, want)
	if err != nil {
		raw.Close()
	}
	return c, <-accepted, err
}

func idOf(t *testing.T, key crypto.PrivKey) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestTLSCertificatesAreGoodAtAnyTime(t *testing.T) {
	tls, err := newTimelessTLS(newKey(t), yamux.ID)
	if err != nil {
		t.Fatal(err)
	}
	config, _ := tls.identity.ConfigForPeer("")
	cert, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, now := range []string{"1970-01-01T00:00:02Z", "2025-01-01T00:00:00Z", "2199-12-31T00:00:00Z"} {
		at, err := time.Parse(time.RFC3339, now)
		if err != nil {
			t.Fatal(err)
		}
		if at.Before(cert.NotBefore) || at.After(cert.NotAfter) {
			t.Errorf("by a clock that says %s it is not good", now)
		}
	}
}

func TestTLSProvesThePeerAndSpeaksWithTheLibrarys(t *testing.T) {
	keys := [2]crypto.PrivKey{newKey(t), newKey(t)}
	ids := [2]peer.ID{idOf(t, keys[0]), idOf(t, keys[1])}
	ours, err := newTimelessTLS(keys[0], yamux.ID)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := libp2ptls.New(libp2ptls.ID, keys[1], []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		client, server sec.SecureTransport
		from, to       peer.ID
	}{{ours, theirs, ids[0], ids[1]}, {theirs, ours, ids[1], ids[0]}, {ours, ours, ids[0], ids[0]}} {
		near, far, err := shake(t, c.client, c.server, c.to)
		if err != nil || far == nil {
			t.Fatalf("%s to %s: %v", c.from, c.to, err)
		}
		if near.RemotePeer() != c.to || far.RemotePeer() != c.from || near.LocalPeer() != c.from {
			t.Errorf("they take each other for %s and %s", near.RemotePeer(), far.RemotePeer())
		}
		if near.ConnState().StreamMultiplexer != yamux.ID || !far.ConnState().UsedEarlyMuxerNegotiation {
			t.Errorf("no multiplexer was agreed upon: %+v, %+v", near.ConnState(), far.ConnState())
		}
	}
	if _, _, err := shake(t, ours, theirs, ids[0]); err == nil {
		t.Error("another peer than the one wanted was taken")
	}
}
