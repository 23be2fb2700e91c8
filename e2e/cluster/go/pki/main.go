// Command pki writes the keys and certificates of one test cluster into a folder.
//
// One authority signs everything. Files: ca, apiserver, apiserver-client, etcd, kubelet and
// kubelet-client (.crt and .key each), and sa.key with sa.pub for ServiceAccount tokens.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type names []string

func (n *names) String() string     { return strings.Join(*n, ",") }
func (n *names) Set(s string) error { *n = append(*n, s); return nil }

type authority struct {
	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	return key
}

func write(folder, name, kind string, der []byte, mode os.FileMode) {
	block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	check(os.WriteFile(filepath.Join(folder, name), block, mode))
}

func writeKey(folder, name string, key crypto.PrivateKey) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	write(folder, name+".key", "PRIVATE KEY", der, 0o600)
}

func template(name string, groups []string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	check(err)
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name, Organization: groups},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		BasicConstraintsValid: true,
	}
}

func newAuthority(folder string) authority {
	key := newKey()
	cert := template("trimtab-test-cluster", nil)
	cert.IsCA = true
	cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	check(err)
	parsed, err := x509.ParseCertificate(der)
	check(err)
	write(folder, "ca.crt", "CERTIFICATE", der, 0o644)
	writeKey(folder, "ca", key)
	return authority{folder, parsed, key}
}

func (a authority) issue(file, name string, groups, hosts []string) {
	key := newKey()
	cert := template(name, groups)
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(hosts) > 0 {
		cert.ExtKeyUsage = append(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	check(err)
	write(a.folder, file+".crt", "CERTIFICATE", der, 0o644)
	writeKey(a.folder, file, key)
}

func main() {
	log.SetFlags(0)
	folder := flag.String("folder", "", "where to write")
	node := flag.String("node", "node", "name of the node")
	var apiHosts, nodeHosts names
	flag.Var(&apiHosts, "api-host", "a name or address of the API server (repeat)")
	flag.Var(&nodeHosts, "node-host", "a name or address of the kubelet (repeat)")
	flag.Parse()
	check(os.MkdirAll(*folder, 0o700))
	loopback := []string{"127.0.0.1", "localhost"}
	ca := newAuthority(*folder)
	ca.issue("apiserver", "kube-apiserver", nil, append(apiHosts, loopback...))
	ca.issue("apiserver-client", "kube-apiserver", []string{"system:masters"}, nil)
	ca.issue("etcd", "etcd", nil, loopback)
	ca.issue("kubelet", "kubelet", nil, append(nodeHosts, loopback...))
	ca.issue("kubelet-client", "system:node:"+*node, []string{"system:nodes"}, nil)
	signing := newKey()
	public, err := x509.MarshalPKIXPublicKey(signing.Public())
	check(err)
	write(*folder, "sa.pub", "PUBLIC KEY", public, 0o644)
	writeKey(*folder, "sa", signing)
}
