package daemon

import "testing"

func TestTheEnvironmentNamesTheProxy(t *testing.T) {
	for _, c := range []struct {
		env           map[string]string
		address, want string
	}{
		{map[string]string{}, "vps.example.org:443", ""},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, "vps.example.org:443", "http://proxy:3128"},
		{map[string]string{"https_proxy": "proxy:3128"}, "7.0.0.10:4001", "http://proxy:3128"},
		{map[string]string{"ALL_PROXY": "http://all:1"}, "7.0.0.10:4001", "http://all:1"},
		{map[string]string{"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "7.0.0.10:4001", "http://a:1"},
		{map[string]string{"HTTP_PROXY": "http://a:1"}, "7.0.0.10:4001", ""},
		{map[string]string{"HTTPS_PROXY": "http://a:1", "NO_PROXY": "example.org,7.0.0.0/8"}, "vps.example.org:443", ""},
		{map[string]string{"HTTPS_PROXY": "http://a:1", "NO_PROXY": "example.org,7.0.0.0/8"}, "7.0.0.10:4001", ""},
		{map[string]string{"HTTPS_PROXY": "http://a:1"}, "192.168.1.10:4001", ""},
		{map[string]string{"HTTPS_PROXY": "http://a:1"}, "127.0.0.1:4001", ""},
	} {
		got := ""
		if proxy := proxyFromEnv(func(name string) string { return c.env[name] }); proxy != nil {
			if u := proxy(c.address); u != nil {
				got = u.String()
			}
		}
		if got != c.want {
			t.Errorf("%v: %s goes through %q, want %q", c.env, c.address, got, c.want)
		}
	}
}
