package forward

import (
	"path/filepath"
	"strconv"
	"strings"
)

// defaultNames are the service names for ports whose meaning is common knowledge.
var defaultNames = map[int]string{
	21:    "ftp",
	22:    "ssh",
	25:    "smtp",
	53:    "dns",
	80:    "http",
	110:   "pop3",
	139:   "smb",
	143:   "imap",
	389:   "ldap",
	443:   "https",
	445:   "smb",
	548:   "afp",
	554:   "rtsp",
	631:   "ipp",
	873:   "rsync",
	993:   "imaps",
	1433:  "mssql",
	1883:  "mqtt",
	2049:  "nfs",
	3306:  "mysql",
	3389:  "rdp",
	5432:  "postgres",
	5672:  "amqp",
	5900:  "vnc",
	6379:  "redis",
	8000:  "http",
	8080:  "http",
	8443:  "https",
	9418:  "git",
	27017: "mongodb",
}

// DefaultName is what a service at this target is called if nobody names it: by its
// port ("ssh", "http", else "port-3000") or by the socket file ("docker"). It holds
// only lower-case letters, digits and hyphens.
func (t Target) DefaultName() string {
	if t.Network == "unix" {
		return socketName(t.Address)
	}
	port := t.Port()
	if name, ok := defaultNames[port]; ok {
		return name
	}
	return "port-" + strconv.Itoa(port)
}

// maxName keeps a socket file's name a DNS label, 63 bytes (RFC 1035, 2.3.4), since
// nas.localhost is what a browser is told.
const maxName = 63

func socketName(path string) string {
	base := filepath.Base(path)
	base = strings.TrimSuffix(strings.TrimSuffix(base, ".socket"), ".sock")
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, base)
	if len(name) > maxName {
		name = name[:maxName]
	}
	if name = strings.Trim(name, "-"); name == "" {
		return "socket"
	}
	return name
}

// Usage is how to use a forward to a target with this port from a local address, in
// one line: "ssh -p 2222 localhost", "http://nas.localhost:8080"; empty where there is
// nothing that everybody would type. service is the name as the user wrote it.
func Usage(service string, port int, local Local) string {
	if local.Network != "tcp" {
		return ""
	}
	host, lport := "127.0.0.1", strconv.Itoa(local.Port())
	name := strings.ReplaceAll(service, ".", "-") + ".localhost" // browsers resolve it to loopback (RFC 6761, 6.3)
	switch (Target{Network: "tcp", Address: joinHostPort(host, port)}).DefaultName() {
	case "ssh":
		return "ssh -p " + lport + " " + host
	case "http", "port-3000", "port-5000", "port-5173", "port-8888":
		return "http://" + name + ":" + lport
	case "https":
		return "https://" + name + ":" + lport
	case "postgres":
		return "psql -h " + host + " -p " + lport
	case "mysql":
		return "mysql -h " + host + " -P " + lport
	case "redis":
		return "redis-cli -p " + lport
	case "vnc":
		return "vnc://" + host + ":" + lport
	case "rdp":
		return "rdp: " + host + ":" + lport
	}
	return ""
}
