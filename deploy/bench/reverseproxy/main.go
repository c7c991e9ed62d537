// Go's own reverse proxy, as a peer of the benchmark: every write of the upstream is flushed at once, nothing is
// stored, nothing is logged, and connections to the upstream are kept.
//
//	reverseproxy ADDRESS UPSTREAM
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: reverseproxy ADDRESS UPSTREAM, as in: reverseproxy 127.0.0.1:8080 http://127.0.0.1:9700")
	}
	upstream, err := url.Parse(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
	log.Fatal(http.ListenAndServe(os.Args[1], proxy))
}
