package daemon

import (
	"net"
	"net/netip"
	"net/url"
	"os"

	"golang.org/x/net/http/httpproxy"
)

// proxyFromEnv reads HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case, by the rules of Go's
// own HTTP client, which knows no ALL_PROXY: it stands in where HTTPS_PROXY is not set. The answer is
// nil for an address (host:port) that needs no proxy; addresses of the LAN never do.
func proxyFromEnv(env func(string) string) func(address string) *url.URL {
	first := func(names ...string) string {
		for _, n := range names {
			if v := env(n); v != "" {
				return v
			}
		}
		return ""
	}
	config := httpproxy.Config{
		HTTPSProxy: first("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
		NoProxy:    first("NO_PROXY", "no_proxy"),
	}
	if config.HTTPSProxy == "" {
		return nil
	}
	proxy := config.ProxyFunc()
	return func(address string) *url.URL {
		if host, _, err := net.SplitHostPort(address); err == nil {
			if ip, err := netip.ParseAddr(host); err == nil && (ip.IsPrivate() || ip.IsLinkLocalUnicast()) {
				return nil
			}
		}
		u, err := proxy(&url.URL{Scheme: "https", Host: address})
		if err != nil {
			return nil // a proxy that cannot be parsed; fwd doctor says so
		}
		return u
	}
}

// environmentsProxy is proxyFromEnv for this process.
func environmentsProxy() func(string) *url.URL { return proxyFromEnv(os.Getenv) }
